"""Finished parts of an audit, kept beside the run, so that an audit that was ended goes on where it was.

A part is used again only where all that it depends on is the same: the run's files and settings, the base,
the list of attacks, the code of the platform, the libraries and the processor's instructions. Anything else
starts anew, and so does what the safety stop ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedpeft.runstore import RunStore, write_atomic
from fedpeft_attacks.results.findings import EpsilonCheck, Example, Finding
from fedpeft_attacks.results.measures import Facts, Strength

FOLDER = "audit-parts"
"""Of a run directory. It may hold recovered text, as the nodes' folders beside it do."""

_PACKAGES = ("torch", "numpy", "scipy", "transformers", "peft", "tokenizers")
_READ = ("config.toml", "nodes", "updates", "broadcasts", "data", "state", "adapter")
_CHANGING = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".log", ".lock")


class PartResult(Facts):
    """What a part of an audit gave."""

    findings: tuple[Finding, ...] = ()
    examples: tuple[Example, ...] = ()
    checks: tuple[EpsilonCheck, ...] = ()
    power: Strength | None = None

    @property
    def is_finished(self) -> bool:
        """Whether no safety stop ended any of its work."""
        powers = [self.power, *(finding.power for finding in self.findings)]
        works = [finding.work for finding in self.findings if finding.work is not None]
        return all(p.is_finished for p in powers if p is not None) and not any(w.stopped for w in works)


def joined(parts: Sequence[PartResult]) -> PartResult:
    """Several parts as one, without their powers."""
    return PartResult(
        findings=tuple(finding for part in parts for finding in part.findings),
        examples=tuple(example for part in parts for example in part.examples),
        checks=tuple(check for part in parts for check in part.checks),
    )


@dataclass(frozen=True)
class FinishedParts:
    """The finished parts of one audit.

    Attributes:
        folder: where they lie; None: nothing is kept.
    """

    folder: Path | None = None

    @classmethod
    def of(cls, store: RunStore, names: Sequence[str], own_copy: bool, base: str) -> FinishedParts:
        """Those of a run, for a list of attacks; parts of any other audit of it are removed.

        Args:
            store: the run.
            names: of the attacks, in their order.
            own_copy: whether examples of recovered text are made.
            base: content hash of the base.
        """
        facts = [list(names), own_copy, base, _libraries(), _digest(_sources()), _digest(_files(store.path))]
        folder = store.path / FOLDER / sha256(json.dumps(facts).encode()).hexdigest()[:32]
        for other in (store.path / FOLDER).glob("*"):
            if other != folder:
                shutil.rmtree(other)
        return cls(folder)

    def part(self, name: str, make: Callable[[], PartResult]) -> PartResult:
        """The part of this name: read where it was finished before, else made and written down."""
        path = None if self.folder is None else self.folder / f"{sha256(name.encode()).hexdigest()[:32]}.json"
        if path is not None and path.is_file():
            return PartResult.model_validate_json(path.read_bytes())
        result = make()
        if path is not None and result.is_finished:
            write_atomic(path, result.model_dump_json().encode())
        return result


def _files(run: Path) -> Iterator[tuple[str, Path]]:
    """The files of a run that an audit reads, by their names in it."""
    for top in _READ:
        places = sorted((run / top).rglob("*")) if (run / top).is_dir() else [run / top]
        for path in places:
            if path.is_file() and not path.name.endswith(_CHANGING):
                yield path.relative_to(run).as_posix(), path


def _sources() -> Iterator[tuple[str, Path]]:
    """The code that an audit runs through."""
    import fedpeft
    import fedpeft_attacks
    import fedpeft_kernels

    for package in (fedpeft, fedpeft_attacks, fedpeft_kernels):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            yield f"{root.name}/{path.relative_to(root).as_posix()}", path


def _digest(files: Iterator[tuple[str, Path]]) -> str:
    total = sha256()
    for name, path in files:
        with path.open("rb") as file:
            total.update(f"{name}\0{file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _libraries() -> list[str]:
    """Versions, and the instructions that torch's kernels use here."""
    import torch

    return [*(f"{name} {_version(name)}" for name in _PACKAGES), torch.backends.cpu.get_cpu_capability()]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
