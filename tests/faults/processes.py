"""Processes that are started again whenever they end, as a service manager does, and a look at all others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

RESTART_SECONDS = 1.0
"""The kits' units wait 5 s; the campaign has less time."""
STOP_SECONDS = 20.0
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

_T = TypeVar("_T")


def until(condition: Callable[[], _T], seconds: float, what: str) -> _T:
    """Wait until something is true; what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
    return found


@dataclass
class Service:
    """One command under a service manager.

    Attributes:
        name: for messages.
        command: with arguments.
        environment: of the process.
        log: file that gets its output.
        starts: how often it was started.
        codes: exit codes so far, negative for signals.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    starts: int = 0
    codes: list[int] = field(default_factory=list[int])
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    _not_before: float = 0.0

    @property
    def pid(self) -> int:
        """Of the running process, 0 while there is none."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def keep(self) -> None:
        """Start the process if it should run and does not."""
        if self.process is not None and self.process.poll() is not None:
            self.codes.append(self.process.returncode)
            self.process, self._not_before = None, time.monotonic() + RESTART_SECONDS
        if self.wanted and self.process is None and time.monotonic() >= self._not_before:
            self.starts += 1
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(self.environment),
                    start_new_session=True,
                )

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None and self.pid:
            self.process.send_signal(number)

    def end(self) -> int:
        """SIGTERM, and SIGKILL if that does not help; the exit code."""
        self.wanted = False
        if self.process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Manager:
    """Keeps services alive in a thread until it is closed."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="service-manager")
        self._thread.start()

    def add(self, service: Service) -> Service:
        """Start a service and keep it."""
        with self._lock:
            service.keep()
            self.services[service.name] = service
        return service

    def end(self, name: str) -> int:
        """End one service for good."""
        with self._lock:
            service = self.services.pop(name)
        return service.end()

    def close(self) -> None:
        """End all, the newest first."""
        self._stop.set()
        self._thread.join()
        for name in reversed(list(self.services)):
            self.end(name)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            with self._lock:
                for service in self.services.values():
                    service.keep()


def processes(marker: str) -> dict[int, str]:
    """Command lines by pid of all processes with a text in their environment, zombies left out."""
    found: dict[int, str] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if marker.encode() in environment and command:
                found[pid] = command
    return found


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid, who it is."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, parts[11:15])) / os.sysconf("SC_CLK_TCK")


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            yield int(entry)
