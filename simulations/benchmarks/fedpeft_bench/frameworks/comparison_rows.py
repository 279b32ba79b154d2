"""``fedpeft bench frameworks``: one private problem by fedpeft, Opacus, jax-privacy and pfl-research.

Each framework calibrates its own noise to the same epsilon, draws its own batches, trains from the same
values on the same records (`problem`), in a process of its own on one thread; its adapter is then scored on
the embedded federation's global test by the platform. Noise and batches are drawn anew in each repeat.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fedpeft.errors import RunError
from fedpeft.privacy.accounting import Steps
from fedpeft.privacy.accounting import epsilon as epsilon_of
from fedpeft_bench.frameworks import problem
from fedpeft_bench.harness.command import child_json
from fedpeft_bench.harness.timing import ONE_THREAD
from fedpeft_simulations.federation_lab import FederationLab

Row = dict[str, Any]
HERE = Path(__file__).parent
OURS = ("fedpeft", "opacus")
"""They run in this environment; each other framework has a script for one of its own."""
SCRIPTS = {"jax-privacy": "jax_privacy_script.py", "pfl": "pfl_script.py"}
SAME_LOSS = 1e-4
"""Relative difference of the losses before training up to which the problem counts as the same."""

XLA = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
"""What asks jax for one thread."""
MEANS = ("loss", "accuracy", "calibration_s", "training_s")
COLUMNS = (
    "epsilon asked",
    "framework",
    "noise mult.",
    "epsilon it states",
    "epsilon of its noise",
    "loss",
    "accuracy",
    "CPU s: calibration",
    "training",
)


def rows(
    others: Mapping[str, str], epsilons: Sequence[float], repeats: int, report: Callable[[str], None]
) -> list[Row]:
    """One row of figures for each epsilon and framework, means over the repeats.

    Args:
        others: by framework of `SCRIPTS`, the Python of an environment in which it is installed.
        epsilons: to which all calibrate.
        repeats: trainings of each framework at each.
        report: receives a line per epsilon and framework.

    Raises:
        RunError: a script failed, or computes another loss than fedpeft before training.
    """
    with tempfile.TemporaryDirectory() as folder:
        track = Track.laid(Path(folder))
        rows: list[Row] = []
        for epsilon in epsilons:
            for framework, command in _commands(others):
                runs = [track.run(framework, command, epsilon) for _ in range(repeats)]
                report(f"epsilon {epsilon:g}, {framework}: accuracy {[run['accuracy'] for run in runs]}")
                rows.append(_row(track, framework, epsilon, runs))
        return rows


@dataclass(frozen=True)
class Track:
    """The problem in a folder, and what it takes to score a solution.

    Attributes:
        folder: what `problem.write` has written.
        lab: base, records and test.
        first_loss: mean loss of the first records before training.
    """

    folder: Path
    lab: FederationLab
    first_loss: float

    @classmethod
    def laid(cls, folder: Path) -> Track:
        """The problem, written into a folder that exists."""
        lab = FederationLab.of(problem.private_recipe())
        lab.attached.begin(lab.attached.initial())
        problem.write(folder, lab)
        return cls(folder, lab, problem.first_loss(lab))

    def run(self, framework: str, command: Sequence[str], epsilon: float) -> Row:
        """One training in a process of its own, and the held-out figures of what it has left in the folder.

        Raises:
            RunError: it failed, or its problem is another.
        """
        facts: Row = child_json([*command, str(self.folder), str(epsilon)], framework, ONE_THREAD | XLA)
        if abs(facts["first_loss"] / self.first_loss - 1) > SAME_LOSS:
            raise RunError(f"{framework} computes the loss {facts['first_loss']}, fedpeft {self.first_loss}")
        score = self.lab.score(np.load(self.folder / f"{framework}.npy").reshape(-1))
        return facts | {"loss": score.loss, "accuracy": score.accuracy}


def _row(track: Track, framework: str, epsilon: float, runs: Sequence[Row]) -> Row:
    """Means of some runs; epsilon of their noise by the platform's accountant, if batches are Poisson's."""
    config, lab, (first, *_) = track.lab.config, track.lab, runs
    rate = config.federation.batch_size * len(lab.nodes) / len(problem.records(lab))
    steps = Steps(rate, first["noise"], len(problem.rates(config)))
    means = {name: fmean(run[name] for run in runs) for name in MEANS}
    facts = {name: first[name] for name in ("version", "noise", "epsilon")}
    return {
        "framework": framework,
        "asked": epsilon,
        "recomputed": epsilon_of([steps], config.privacy.delta),
        "worst": min(run["accuracy"] for run in runs),
        "repeats": len(runs),
        **facts,
        **means,
    }


def cells(row: Row) -> list[str]:
    """A row of `rows` as text, in the order of `COLUMNS`."""
    return [
        f"{row['asked']:g}",
        f"{row['framework']} {row['version']}",
        f"{row['noise']:.4f}",
        f"{row['epsilon']:.4f}",
        f"{row['recomputed']:.4f}",
        f"{row['loss']:.3f}",
        f"{row['accuracy']:.3f}" + (f" ({row['worst']:.3f})" if row["repeats"] > 1 else ""),
        f"{row['calibration_s']:.1f}",
        f"{row['training_s']:.1f}",
    ]


def _commands(others: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    for framework in OURS:
        yield framework, [sys.executable, "-m", "fedpeft_bench.frameworks.arms", framework]
    for framework, python in others.items():
        yield framework, [python, str(HERE / "scripts" / SCRIPTS[framework])]
