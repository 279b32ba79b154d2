"""Coverage-guided fuzzing of the parser of envelopes with Atheris (libFuzzer).

::

    python tests/fuzz/fuzz_envelopes.py --runs 1000000
    python tests/fuzz/fuzz_envelopes.py --reproduce finding-0123456789abcdef

`envelopes.py` says what an input is and what must hold. Every finding is written to a file and ends the run
with exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedpeft.exchange", "fedpeft_kernels"]):
    from envelopes import Finding, Tally, check, seeds, targets

SHOWN = 100_000
"""Inputs between two lines about the progress."""


def main() -> None:
    """Read the options and start."""
    parser = argparse.ArgumentParser(description="Fuzz the parser of envelopes.")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs beyond the seeds")
    parser.add_argument("--seed", type=int, default=1, help="seed of the mutations")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for inputs that break something")
    parser.add_argument("--reproduce", type=Path, help="check one written input and end")
    options = parser.parse_args()
    if options.reproduce:
        check(options.reproduce.read_bytes(), targets(), Tally())
        print("nothing found")
    else:
        _fuzz(options.runs, options.seed, options.out)


class Run:
    """Counts inputs, puts each to the parser and ends the process after enough of them or at a finding."""

    def __init__(self, runs: int, out: Path) -> None:
        self.targets = targets()
        self.seeds = frozenset(seeds(self.targets))
        self.tally = Tally()
        self.corpus = tempfile.TemporaryDirectory()
        self.runs, self.out = runs, out
        self.out.mkdir(parents=True, exist_ok=True)
        self.mutated = 0
        self.begun = time.perf_counter()
        for data in self.seeds:
            Path(self.corpus.name, hashlib.sha256(data).hexdigest()).write_bytes(data)

    def one_input(self, data: bytes) -> None:
        """What libFuzzer calls."""
        try:
            check(data, self.targets, self.tally)
        except Finding as finding:
            self._end(_written(data, self.out, finding), 1)
        if data in self.seeds:
            return
        self.mutated += 1
        if self.mutated >= self.runs:
            self._end([*self.tally.lines(), self._progress()], 0)
        if self.mutated % SHOWN == 0:
            print(self._progress(), flush=True)

    def _progress(self) -> str:
        spent = time.perf_counter() - self.begun
        rate = f"{self.mutated / spent:,.0f} per second"
        return f"{self.mutated:,} mutations of {len(self.seeds):,} seeds in {spent:,.0f} s, {rate}"

    def _end(self, lines: list[str], code: int) -> None:
        """Print and leave; libFuzzer would go on, so that no exception ends it."""
        print(*lines, sep="\n", flush=True)
        self.corpus.cleanup()
        os._exit(code)


def _fuzz(runs: int, seed: int, out: Path) -> None:
    run = Run(runs, out)
    longest = max(map(len, run.seeds)) + 64
    limits = [f"-seed={seed}", f"-max_len={longest}", "-timeout=60", f"-artifact_prefix={out}/crash-"]
    style = ["-mutate_depth=2", "-verbosity=0"]  # few mutations at a time: more inputs reach the last checks
    atheris.Setup([sys.argv[0], *limits, *style, run.corpus.name], run.one_input)
    atheris.Fuzz()


def _written(data: bytes, out: Path, finding: Finding) -> list[str]:
    path = out / f"finding-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return [f"{finding}", f"written to {path}"]


if __name__ == "__main__":
    main()
