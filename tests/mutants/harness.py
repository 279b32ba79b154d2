"""Mutants: one line of fedpeft changed into a known privacy bug, and the tests that must notice it.

A mutant is applied to the source as it is imported, in a forked child that then runs the named tests. It is
killed when at least one of them fails. A mutant whose line is no longer in the source is an error, so that
the catalogue cannot go stale.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[2]
TESTS_FAILED = 1
MOST_SECONDS = 3600
"""For the tests of one mutant; one that hangs is an error of the catalogue."""
PLD = "dp_accounting.pld.privacy_loss_distribution"
WARM = ("torch", "transformers", "peft", PLD, "scipy.stats", "pytest", "hypothesis", "pydantic", "flwr.app")
"""What every child would import again; none of it is fedpeft's."""
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-m", "", "-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Of pytest; what is warm was imported before it could rewrite anything."""


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        number: of the bug in docs/privacy-bugs.md; from 101 on, of no known bug but of a check of our own.
        bug: what goes wrong.
        module: where it is put in.
        old: text that occurs exactly once in the module.
        new: what replaces it.
        tests: node ids, relative to tests/, of which at least one must fail.
    """

    number: int
    bug: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """Number and module, as shown in reports."""
        return f"{self.number:02d} {self.module.rpartition('.')[2]}"


class _MutatingLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module with one replacement."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        if source.count(self.mutant.old) != 1:
            raise LookupError(f"{self.mutant.name}: its line occurs {source.count(self.mutant.old)} times")
        return compile(source.replace(self.mutant.old, self.mutant.new), self.path, "exec")


class _Finder:
    """Finds the mutated module before anybody else does."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        if name != self.mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.origin is not None
        loader = _MutatingLoader(name, spec.origin)
        loader.mutant = self.mutant
        return importlib.util.spec_from_file_location(name, spec.origin, loader=loader)


def source_of(module: str) -> str:
    """The source of a module, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def warm_up() -> None:
    """Import what no mutant touches."""
    for name in WARM:
        importlib.import_module(name)


def exit_code(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """Run tests in a forked child under a mutant (or none) and return pytest's exit code."""
    child = os.fork()
    if child == 0:
        os._exit(_run(mutant, tests))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(mutant: Mutant | None, tests: Sequence[str]) -> int:
    import pytest

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        if mutant is not None:
            signal.alarm(MOST_SECONDS)
            sys.meta_path.insert(0, _Finder(mutant))  # pyright: ignore[reportArgumentType]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.chdir(ROOT)
        named = [f"tests/{test}" for test in tests]
        return int(pytest.main([*OPTIONS, *named]))
    except BaseException:
        return 70
