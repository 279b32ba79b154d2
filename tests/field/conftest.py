"""Inputs of the kinds that public bug reports name, made once; a command line as a user types it."""

import contextlib
import fcntl
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpeft.bases import forget_base
from fedpeft.bases.load import quiet
from fedpeft.cli import main


@dataclass(frozen=True)
class Inputs:
    """Folders of the inputs."""

    root: Path

    def base(self, name: str) -> Path:
        return self.root / "bases" / name

    def adapter(self, name: str) -> Path:
        return self.root / "adapters" / name

    def data(self, name: str) -> Path:
        return self.root / "data" / name


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    """All inputs; the first worker makes them, the others wait."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root = shared / "field-inputs"
    with (shared / "field-inputs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "made").exists():
            _make(root)
            (root / "made").touch()
    return Inputs(root)


def _make(root: Path) -> None:
    from . import input_adapters, input_bases, input_data

    root.mkdir(exist_ok=True)
    with quiet():  # libraries warn of what is made odd here
        input_bases.make(root / "bases")
        input_adapters.make(root / "adapters", root / "bases")
        input_data.make(root / "data")


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a mistake costs."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert self.code and len(lines) == 1, (self.code, self.err)
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture
def fedpeft(monkeypatch):
    """Runs a command line in this process, as ``main`` does."""

    def run(*arguments: object) -> Done:
        forget_base()
        monkeypatch.setattr(sys, "argv", ["fedpeft", *map(str, arguments)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Done(code, out.getvalue(), err.getvalue())

    return run


SMALL = {
    "base.threads": 1,
    "run.arms": "[]",
    "audit.enabled": "false",
    "federation.rounds": 1,
    "federation.local_steps": 1,
    "federation.batch_size": 4,
    "federation.nodes": 2,
    "adapter.rank": 4,
    "adapter.skip_layers": "[]",
    "data.partition": "iid",
}


@pytest.fixture
def settings(inputs):
    """Options of a federation of two nodes and one step; names of settings with ``__`` for the point."""

    def options(base: str = "llama", source: str = "orgs/bank.jsonl", **changes: object) -> list[str]:
        chosen = SMALL | {"base.model": inputs.base(base), "data.source": inputs.data(source)}
        chosen |= {key.replace("__", "."): value for key, value in changes.items()}
        return [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]

    return options
