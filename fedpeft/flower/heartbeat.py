"""Clocks that run beside the work: a heartbeat, and a watchdog on one step."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Generator

_AFTER_FAILURE = 1.0
_LAST_RESORT = 10.0
_STDERR = 2


class Pulse:
    """Calls ``beat`` every some seconds in a thread until `end`; a beat that fails is tried again in 1 s."""

    def __init__(self, beat: Callable[[], object], seconds: float) -> None:
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fedpeft-pulse")
        self._thread.start()

    def end(self, seconds: float = 1.0) -> None:
        """Beat no more; wait at most some seconds for a beat that is under way."""
        self._ended.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        pause = self._seconds
        while not self._ended.wait(pause):
            try:
                self._beat()
                pause = self._seconds
            except Exception:
                pause = min(_AFTER_FAILURE, self._seconds)


@contextlib.contextmanager
def watched(seconds: float | None, last_act: Callable[[], object]) -> Generator[None]:
    """End the process with exit code 75 if the block takes longer; `None` watches nothing.

    ``last_act`` is called before, for at most 3 s. Only a process that was ended can be trusted to have
    left a step that hangs; its service manager starts it again. A step that holds the interpreter, so that
    no Python thread runs, is ended 10 s later, with exit code 1 and without the last act.
    """
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _bite, (last_act,))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + _LAST_RESORT, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def _bite(last_act: Callable[[], object]) -> None:
    try:
        within(3.0, last_act)
    finally:
        os._exit(os.EX_TEMPFAIL)


def within(seconds: float, act: Callable[[], object]) -> None:
    """Call ``act`` in a thread and wait at most some seconds for it; what it raises is dropped."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            act()

    thread = threading.Thread(target=quietly, daemon=True, name="fedpeft-farewell")
    thread.start()
    thread.join(seconds)
