"""Privacy broken on purpose, in this process and while an audit looks on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from fedpeft.privacy import csprng, noise
from fedpeft.training import privacy_units
from fedpeft.training.dp import dpsgd, per_example


class Fault(NamedTuple):
    """A fault, and what of the privacy issue catches it.

    Attributes:
        name: as the tables say it.
        planted: a context in which each node starts; what it changes is restored.
        bugs: numbers in docs/privacy-bugs.md of the mutants that are this fault.
        test: one of the daily tests that kill them.
    """

    name: str
    planted: Callable[[], Any]
    bugs: str
    test: str


@contextmanager
def weak_noise(factor: float) -> Generator[None]:
    """All Gaussian noise is ``factor`` times as large."""
    right = noise.gaussian

    def weak(size: int, source: csprng.Randomness = csprng.words) -> NDArray[np.float64]:
        return factor * right(size, source)

    with patch.object(noise, "gaussian", weak):
        yield


@contextmanager
def no_clip() -> Generator[None]:
    """Gradients are summed as they are."""

    def unclipped(attached: Any, batch: Any, clip: per_example.JointClip, *rest: Any) -> Any:
        return per_example.clipped_sum(attached, batch, replace(clip, gradient=1e9 * clip.gradient), *rest)

    with patch.object(dpsgd, "clipped_sum", unclipped):
        yield


@contextmanager
def no_sampling() -> Generator[None]:
    """All units take part in each step."""

    def everyone(n: int, q: float, source: object = None) -> NDArray[np.int64]:
        return np.arange(n)

    with patch.object(privacy_units, "poisson", everyone):
        yield


@contextmanager
def shuffled() -> Generator[None]:
    """Batches of a fixed size from shuffled epochs, accounted for as Poisson draws."""
    epochs: dict[int, itertools.chain[NDArray[np.int64]]] = {}

    def batches(n: int, q: float) -> Generator[NDArray[np.int64]]:
        rng, size = np.random.default_rng(), max(1, round(q * n))
        while True:
            order = rng.permutation(n)
            yield from (np.sort(order[start : start + size]) for start in range(0, n - size + 1, size))

    def next_batch(n: int, q: float, source: object = None) -> NDArray[np.int64]:
        return next(epochs.setdefault(n, itertools.chain(batches(n, q))))

    with patch.object(privacy_units, "poisson", next_batch):
        yield


@contextmanager
def one_seed() -> Generator[None]:
    """Each node takes the same keys from what should be the operating system."""
    calls = itertools.count()

    def urandom(size: int) -> bytes:
        return hashlib.sha256(str(next(calls)).encode()).digest()[:size]

    with patch.object(csprng, "os", SimpleNamespace(urandom=urandom)):
        yield


STEPS = "fedpeft/test_privacy_per_example.py::"
FAULTS = (
    Fault("noise x 0.5", partial(weak_noise, 0.5), "1", f"{STEPS}test_an_empty_draw_is_noise_alone"),
    Fault("noise x 0.7", partial(weak_noise, 0.7), "1", f"{STEPS}test_an_empty_draw_is_noise_alone"),
    Fault("clip skipped", no_clip, "2, 21", f"{STEPS}test_one_record_moves_the_sum_by_at_most_the_clip"),
    Fault(
        "no sampling",
        no_sampling,
        "6",
        "fedpeft/test_training_private.py::test_a_seeded_round_equals_the_naive_twin",
    ),
    Fault(
        "shuffle for Poisson",
        shuffled,
        "6",
        "fedpeft/test_training_private.py::test_a_seeded_round_equals_the_naive_twin",
    ),
    Fault(
        "one seed on two nodes",
        one_seed,
        "16",
        "fedpeft/test_training.py::test_private_training_ignores_the_seed",
    ),
)
