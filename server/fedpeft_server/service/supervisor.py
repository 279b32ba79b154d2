"""The coordinator's service: it keeps everything alive that a federation needs, and does nothing else itself.

Its control plane is the file system: commands write, the service finds what they wrote. So no command needs
a running service, and a service that starts again goes on where the last one ended, however that was.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from fedpeft.errors import FederationError, FedPeftError
from fedpeft_server.service import certificates
from fedpeft_server.service.child_process import Child, stop_all
from fedpeft_server.service.health_probe import Probe
from fedpeft_server.service.key_sync import Registrar
from fedpeft_server.service.server_home import ENDED, ServerHome, read_status, take_lock, write_status
from fedpeft_server.service.service_log import Emit

TICK = 0.25
CERTIFICATE_SECONDS = 60.0
MOST_CRASHES = 8
"""Crashes of a run's process in a row, without a new checkpoint between them, that end the run."""
_LOCK_SECONDS = 5.0
_JOIN_SECONDS = 2.0


@dataclass
class _RunChild:
    """A run's process and how far it had come when it last died."""

    child: Child
    progress: str = ""
    crashes: int = 0


@dataclass
class Supervisor:
    """The service of one home.

    Attributes:
        home: the coordinator.
        emit: where events go.
        stop: ends the service when it is set.
        restarts: how often each kind of process was started again.
    """

    home: ServerHome
    emit: Emit
    stop: threading.Event = field(default_factory=threading.Event)
    restarts: dict[str, int] = field(default_factory=lambda: {"link": 0, "runner": 0})
    _runs: dict[str, _RunChild] = field(default_factory=dict)
    _link: Child = field(init=False)
    _checked: float = float("-inf")
    _faults: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        command = ("fedpeft_server.service.link_process", str(self.home.path))
        self._link = Child(command, self.home.path / "link.log")

    def run(self) -> None:
        """Serve until the event is set, then end all processes.

        Raises:
            FederationError: another service runs on this home, or a port is taken.
        """
        from fedpeft_server.service.enrolment_service import serving
        from fedpeft_server.service.metrics import exposing

        with contextlib.ExitStack() as stack:
            stack.enter_context(_only_one(self.home))
            stack.enter_context(exposing(self.home, self.restarts))
            stack.enter_context(serving(self.home, self.emit))
            self.emit("service started", **self._ports())
            threads = self._helpers()
            try:
                self._loop()
            finally:
                self.stop.set()
                stop_all([process.child for process in self._runs.values()])
                stop_all([self._link])
                for thread in threads:
                    thread.join(_JOIN_SECONDS)
                self.emit("service ended")

    def _helpers(self) -> list[threading.Thread]:
        """What goes on beside the loop."""
        registrar = Registrar(self.home, self.emit, lambda: self._link.starts)
        probe = Probe(self.home.settings.inside_port, self._link, self.emit)
        targets = (registrar.run, probe.run)
        threads = [threading.Thread(target=target, args=(self.stop,), daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        return threads

    def _ports(self) -> dict[str, object]:
        settings = self.home.settings
        return {
            "federation": settings.name,
            "bind": settings.bind,
            "port": settings.port,
            "enrolment_port": settings.enrolment_port,
            "metrics_port": settings.metrics_port,
        }

    def _loop(self) -> None:
        while not self.stop.is_set():
            self._guarded("certificate", self._keep_certificate)
            self._guarded("link", self._keep_link)
            for folder in self.home.run_folders():
                self._guarded(f"run {folder.name}", lambda folder=folder: self._keep_run(folder))
            self.stop.wait(TICK)

    def _guarded(self, name: str, part: Callable[[], None]) -> None:
        """One part of the service; a fault of it is told once and does not end the others."""
        try:
            part()
        except (FedPeftError, OSError) as error:
            if self._faults.get(name) != str(error):
                self.emit("fault", "error", part=name, cause=str(error))
            self._faults[name] = str(error)
        else:
            self._faults.pop(name, None)

    def _keep_certificate(self) -> None:
        """Renew in time; link and enrolment take up a file that has changed, and nothing restarts."""
        if time.monotonic() - self._checked < CERTIFICATE_SECONDS:
            return
        self._checked = time.monotonic()
        if certificates.needs_renewal(certificates.load(self.home.path / "server.crt")):
            certificates.renew(self.home.path, self.home.settings.host)
            self.emit("certificate renewed", days=certificates.SERVER_DAYS)

    def _keep_link(self) -> None:
        if (code := self._link.ended()) is not None:
            self.restarts["link"] += 1
            self.emit("link ended", "error", code=code, cause=self._link.last_line())
        if self._link.start_if_due():
            self.emit("link started", pid=_pid(self._link))

    def _keep_run(self, folder: Path) -> None:
        """Start a run's process, start it again after a death, and forget it when the run has ended."""
        if read_status(folder).state in ENDED:
            return self._drop(folder)
        command = ("fedpeft_server.service.run_process", str(self.home.path), folder.name)
        process = self._runs.setdefault(folder.name, _RunChild(Child(command, folder / "runner.log")))
        if (code := process.child.ended()) is not None:
            self._died(folder, process, code)
        elif process.child.start_if_due():
            self.emit("run process started", run=folder.name, pid=_pid(process.child))

    def _drop(self, folder: Path) -> None:
        """Forget the process of a run that has ended, once it is gone."""
        process = self._runs.get(folder.name)
        if process is None or process.child.alive:
            return
        process.child.finish(0.0)
        del self._runs[folder.name]
        status = read_status(folder)
        self.emit("run ended", run=folder.name, state=status.state, cause=status.cause)

    def _died(self, folder: Path, process: _RunChild, code: int) -> None:
        """Count a crash; a run whose process dies again and again at the same place is given up."""
        progress = _progress(folder)
        before = process.crashes if progress == process.progress else 0
        process.crashes, process.progress = before + (code != os.EX_TEMPFAIL), progress
        self.restarts["runner"] += 1
        cause = process.child.last_line()
        self.emit(
            "run process died", "error", run=folder.name, code=code, crashes=process.crashes, cause=cause
        )
        status = read_status(folder)
        if status.state in ENDED:
            return
        status = replace(status, restarts=status.restarts + 1)
        if process.crashes >= MOST_CRASHES:
            cause = f"its process died {process.crashes} times at the same place; see {folder / 'runner.log'}"
            status = status.to("failed", cause)
        write_status(folder, status)


def _pid(child: Child) -> int:
    return child.process.pid if child.process is not None else 0


def _progress(folder: Path) -> str:
    """Something that changes with every checkpoint."""
    return max((path.name for path in (folder / "checkpoints").glob("[0-9]*")), default="")


@contextlib.contextmanager
def _only_one(home: ServerHome) -> Generator[None]:
    lock = _await_lock(home.path / "up.lock")
    if lock is None:
        raise FederationError(f"another service runs on {home.path}; end it first (one service a folder)")
    with lock:
        yield


def _await_lock(path: Path) -> IO[str] | None:
    """The lock, waited for a little: a command that looks whether the service runs holds it for a moment."""
    end = time.monotonic() + _LOCK_SECONDS
    while (lock := take_lock(path)) is None and time.monotonic() < end:
        time.sleep(0.1)
    return lock
