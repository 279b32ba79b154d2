"""Processes that the supervisor keeps alive: both of its ends, the parent's and the child's."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft_server.service.output_file import keep_output

SUPERVISED = "FEDPEFT_SUPERVISED"
"""Set in a child's environment: its standard input ends when its supervisor does."""
GRACE_SECONDS = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
CALM_SECONDS = 60.0
"""A child that lived so long starts again at once."""
_LONGEST_LINE = 1000
_LAST_WORDS_SECONDS = 2.0
_MANY_DESCRIPTORS = 2**16


@dataclass
class Child:
    """A command that is started again, later and later, as often as it ends.

    Attributes:
        command: arguments after ``python -P -m``.
        output: file that its output is appended to, bounded while it runs.
        process: the running or ended process; None before the first.
        failures: ends in a row without a calm time between them.
        starts: how often it was started.
    """

    command: Sequence[str]
    output: Path
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    starts: int = 0
    _started: float = 0.0
    _not_before: float = 0.0
    _ended: bool = field(default=True, repr=False)
    _listener: threading.Thread | None = field(default=None, repr=False)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def ended(self) -> int | None:
        """The exit code, once for each end; None while it runs. Decides when it may start again."""
        if self.process is None or self._ended or self.process.poll() is None:
            return None
        self._close()
        now = time.monotonic()
        self.failures = 1 if now - self._started > CALM_SECONDS else self.failures + 1
        self._not_before = now + min(LONGEST_DELAY, FIRST_DELAY * 2 ** (self.failures - 1))
        return self.process.returncode

    def start_if_due(self) -> bool:
        """Start the process unless it runs or has to wait; whether it was started."""
        if self.alive or not self._ended or time.monotonic() < self._not_before:
            return False
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, SUPERVISED: "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._listener = keep_output(self.process.stdout, self.output)
        self._started, self._ended = time.monotonic(), False
        self.starts += 1
        return True

    def last_line(self) -> str:
        """The last line of the output: why the process ended, if it said so."""
        if not self.output.exists():
            return ""
        with self.output.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _LONGEST_LINE))
            lines = output.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.process is not None and self.alive:
            self.process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.alive:
            self.process.kill()

    def finish(self, deadline: float) -> None:
        """Wait for the end until a deadline (monotonic seconds), then kill."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        """Forget what belonged to a process that has ended."""
        self._ended = True
        if self._listener is not None:
            self._listener.join(_LAST_WORDS_SECONDS)
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


def stop_all(children: Sequence[Child]) -> None:
    """End all processes side by side; those that do not obey are killed after ten seconds."""
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        child.terminate()
    for child in children:
        child.finish(deadline)


def begin_service(stop: threading.Event, flower_home: Path) -> None:
    """Make this process one of the service's.

    SIGTERM and SIGINT set the event; the process may open as many files as the system lets it; files made
    from now on are the owner's alone; Flower keeps its own files in a given folder; and no proxy of the
    environment stands between processes of this machine.
    """
    os.umask(0o077)
    _use_all_descriptors()
    os.environ["FLWR_HOME"] = str(flower_home)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _use_all_descriptors() -> None:
    """Let this process open as many files and connections as the system allows it to."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_DESCRIPTORS if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def end_with_parent(stop: threading.Event) -> None:
    """In a child: set the event when the supervisor is gone, and end the process if that does not."""
    if os.environ.get(SUPERVISED) != "1":
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        stop.set()
        time.sleep(GRACE_SECONDS)
        os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, daemon=True, name="fedpeft-parent").start()
