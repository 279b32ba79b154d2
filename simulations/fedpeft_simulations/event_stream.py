"""A federation whose events are read one by one, so that a notebook or a script shows its progress."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import scenario_file
from fedpeft.errors import ConfigError, RunError
from fedpeft_simulations.progress import Mode, Progress
from fedpeft_simulations.run_tables import Run

Event = dict[str, Any]


def simulate(
    scenario: Config | Path | str = "embedded",
    settings: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    mode: Mode = "new",
) -> Simulation:
    """Run a whole federation on this machine: train, compress, protect, attack, export.

    It starts when the first event, or the result, is asked for.

    Args:
        scenario: a config, the path of a scenario file, ``"embedded"`` (the federation that the package
            carries), or ``"defaults"``.
        settings: values by full name, such as ``{"federation.rounds": 2}``, in place of a scenario file's.
        out: run directory; default: ``runs/<run.name>``.
        mode: make a new run, continue one that was stopped (with its own settings), or replace one.

    Returns:
        An iterator of events, each as in ``metrics.jsonl``; its `Simulation.result` is the `Run`.

    Raises:
        ConfigError: an unknown scenario or setting, or settings beside a config.
    """
    if not isinstance(scenario, Config):
        config = load_config(scenario_file(str(scenario)), settings or {})
    elif settings:
        raise ConfigError("settings were given beside a Config, which has all of them; give a scenario file")
    else:
        config = scenario
    return Simulation(config, Path(out) if out is not None else Path("runs") / config.run.name, mode)


class Simulation(Iterator[Event]):
    """A federation that advances as its events are read; `simulate` makes one.

    It works in a thread that waits for each event to be read. A simulation that is closed stops at its next
    event, as if it had been interrupted; ``simulate(out=..., mode="resume")`` continues it.

    Attributes:
        config: its settings.
        out: its run directory.
    """

    def __init__(self, config: Config, out: Path, mode: Mode) -> None:
        from fedpeft_simulations.federation_run import run

        self.config, self.out = config, out
        self._events = _events(partial(run, config, out, mode))

    def __next__(self) -> Event:
        return next(self._events)

    def result(self) -> Run:
        """Read all events that are left; the finished run.

        Raises:
            RunError: the simulation was closed before its end, or has failed.
            FedPeftError: bad settings, data or base; too few valid replies; a directory that is taken.
        """
        for _ in self._events:
            pass
        run = Run(self.out)
        if not run.is_finished:
            raise RunError(f"{str(self.out)!r} was stopped before its end; mode='resume' continues it")
        return run

    def close(self) -> None:
        """Stop at the next event; what was done up to then is kept."""
        self._events.close()


class _Stopped(BaseException):
    """Ends a run whose events nobody reads any more; no handler of errors takes it for one."""


def _events(work: Callable[[Progress], object]) -> Generator[Event]:
    """The events that a function reports; it waits at each until the next is wanted, or stops there."""
    reports: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    wanted, stopped = threading.Semaphore(0), threading.Event()

    def report(event: Event) -> None:
        reports.put(event)
        wanted.acquire()
        if stopped.is_set():
            raise _Stopped

    def body() -> None:
        try:
            work(report)
        except BaseException as error:
            reports.put(error)
        else:
            reports.put(None)

    worker = threading.Thread(target=body, name="fedpeft-simulation", daemon=True)
    worker.start()
    try:
        while isinstance(event := reports.get(), dict):
            yield event
            wanted.release()
        if event is not None:
            raise event
    finally:
        stopped.set()
        wanted.release()
        worker.join()
