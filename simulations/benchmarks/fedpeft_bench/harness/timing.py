"""Processor time of one core, the best of several runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

RUNS = 5


ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""What asks numpy's and torch's libraries for one thread, in the environment of a process."""


def one_core() -> None:
    """Ask for one thread; of use only before these libraries are first imported."""
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)


def best(work: Callable[[], Result], runs: int = RUNS) -> tuple[Result, float]:
    """Repeat some work so many times, on a fast machine as on a slow one.

    The processor time of the whole process is measured, so that neither waiting for a shared core nor a
    second thread makes a codec look faster or slower than it is.

    Returns:
        The last result and the shortest processor time in seconds.
    """
    result, shortest = _timed(work)
    for _ in range(1, runs):
        result, took = _timed(work)
        shortest = min(shortest, took)
    return result, shortest


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = work()
    return result, max(time.process_time() - started, 1e-9)
