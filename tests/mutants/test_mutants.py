"""Every known privacy bug, put into the source, is noticed by a test; the document says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bugs import BUGS, table  # noqa: E402
from catalogue import MUTANTS  # noqa: E402
from harness import ROOT, Mutant, source_of  # noqa: E402

NUMBERS = list(range(1, 39))
TABLED = [mutant for mutant in MUTANTS if mutant.number in NUMBERS]


def test_every_bug_of_the_table_has_a_mutant():
    assert [bug.number for bug in BUGS] == NUMBERS
    assert sorted({mutant.number for mutant in TABLED}) == NUMBERS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_of_a_mutant_is_in_the_source_once(mutant: Mutant):
    source = source_of(mutant.module)
    assert source.count(mutant.old) == 1 and mutant.new != mutant.old
    compile(source.replace(mutant.old, mutant.new), mutant.module, "exec")  # what cannot run shows nothing


def test_the_document_is_the_catalogue():
    """``python tests/mutants/run.py --table`` prints what belongs into it."""
    text = (ROOT / "docs" / "privacy-bugs.md").read_text(encoding="utf-8")
    assert text.endswith("\n\n" + table(MUTANTS))
    assert f"{len(TABLED)} mutants" in text


def test_the_tests_that_kill_are_there_and_run_every_day():
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        path, name = test.split("::")
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        before, found, _ = source.partition(f"\ndef {name.partition('[')[0]}(")
        assert found and "mark.slow" not in before.rpartition("\n\n\n")[2], test


@pytest.mark.slow
def test_all_mutants_are_killed():
    done = subprocess.run([sys.executable, HERE / "run.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
