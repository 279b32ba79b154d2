"""Every known privacy bug, put into the source, is noticed by a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from catalogue import MUTANTS  # noqa: E402
from harness import Mutant, source_of  # noqa: E402

BUGS = range(1, 39)


def test_every_bug_of_the_table_has_a_mutant():
    assert sorted({mutant.number for mutant in MUTANTS}) == list(BUGS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_line_of_a_mutant_is_in_the_source_once(mutant: Mutant):
    assert source_of(mutant.module).count(mutant.old) == 1 and mutant.new != mutant.old


@pytest.mark.slow
def test_all_mutants_are_killed():
    done = subprocess.run([sys.executable, HERE / "run.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
