"""Processor time of one core, the best of several runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

LEAST_RUNS, MOST_RUNS, PATIENCE = 3, 9, 1.2


def one_core() -> None:
    """Ask numpy's and torch's libraries for one thread; of use only before they are first imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def best(work: Callable[[], Result], seconds: float = 0.12) -> tuple[Result, float]:
    """Repeat some work until it has taken ``seconds`` in all: three to nine times, fewer if it is very slow.

    The processor time of the whole process is measured, so that neither waiting for a shared core nor a
    second thread makes a codec look faster or slower than it is.

    Returns:
        The last result and the shortest processor time in seconds.
    """
    result, shortest = _timed(work)
    spent = shortest
    for run in range(1, MOST_RUNS):
        if spent >= (seconds if run >= LEAST_RUNS else PATIENCE):
            break
        result, took = _timed(work)
        shortest, spent = min(shortest, took), spent + took
    return result, shortest


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = work()
    return result, max(time.process_time() - started, 1e-9)
