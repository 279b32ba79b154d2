"""The coordinator's folder: names and contents of everything that its service keeps."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from fedpeft.errors import ConfigError, RunError
from fedpeft.protocol.enrolment import valid_name
from fedpeft.runstore import Format, state_root, write_atomic
from fedpeft.trust import Signer
from fedpeft.trust.signed_log import LogFormat, SignedLog
from fedpeft_server.service import certificates

if TYPE_CHECKING:
    from fedpeft.flower import SuperLink

SECRET_BYTES = 32
SETTINGS, STATUS = Format(), Format()
"""Formats of ``server.json`` and of a run's ``status.json``."""
OPERATOR_LOG = LogFormat("operator")
PORTS = ("port", "enrolment_port", "inside_port", "metrics_port")

RunState = Literal["submitted", "running", "done", "failed", "stopped"]
ENDED = ("done", "failed", "stopped")


def coordinators() -> Path:
    """Folder of all coordinators: ``$FEDPEFT_HOME/server``; without that variable in the user's state."""
    return state_root() / "server"


def only_home() -> Path:
    """The folder of the only coordinator of this user.

    Raises:
        ConfigError: there is none, or more than one.
    """
    homes = sorted(path.parent for path in coordinators().glob("*/server.json"))
    if not homes:
        raise ConfigError(f"no coordinator in {coordinators()}; make one with 'fedpeft server init'")
    if len(homes) > 1:
        names = ", ".join(str(path) for path in homes)
        raise ConfigError(f"there are several coordinators; give one with --home: {names}")
    return homes[0]


@dataclass(frozen=True)
class Settings:
    """``server.json``: what the operator chose when the coordinator was made.

    Attributes:
        name: of the federation.
        host: name or address under which nodes reach it; the certificate is made out to it.
        bind: address that the two public ports listen on.
        port: of Flower's Fleet API, TLS.
        enrolment_port: of the enrolment service, TLS.
        inside_port: of Flower's other APIs, loopback.
        metrics_port: of the Prometheus metrics, loopback.
    """

    name: str
    host: str
    bind: str
    port: int
    enrolment_port: int
    inside_port: int
    metrics_port: int

    @property
    def inside(self) -> str:
        """Address of the loopback API."""
        return f"127.0.0.1:{self.inside_port}"


def bind_address(host: str) -> str:
    """What to listen on to be reached as ``host``: an address as it is, any other name on all interfaces.

    A name may have IPv6 addresses only, so all interfaces means both families where the system has both.
    """
    try:
        return str(ip_address(host))
    except ValueError:
        if host == "localhost":
            return "127.0.0.1"
        return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


@dataclass(frozen=True)
class RunStatus:
    """``status.json`` of a run; the runner writes it, and the supervisor while no runner lives.

    Attributes:
        state: of the run.
        cause: why it failed or stopped, in plain words.
        restarts: how often its process was started again after it died.
        flower_run: Flower's id of the newest attempt; 0: none yet.
        since: seconds since the epoch of the last change of state.
    """

    state: RunState
    cause: str = ""
    restarts: int = 0
    flower_run: int = 0
    since: float = 0.0

    def to(self, state: RunState, cause: str = "") -> RunStatus:
        """The status after a change of state now."""
        return replace(self, state=state, cause=cause, since=time.time())


@dataclass(frozen=True)
class ServerHome:
    """A coordinator's folder; every path of it has one name here."""

    path: Path

    @classmethod
    def create(cls, path: Path, settings: Settings) -> ServerHome:
        """Make a new coordinator: keys, certificates and settings, of which ``server.json`` comes last.

        Raises:
            ConfigError: the folder exists.
        """
        if path.exists():
            raise ConfigError(f"{str(path)!r} exists; choose another --home, or remove it by hand")
        path.mkdir(parents=True, mode=0o700)
        home = cls(path)
        try:
            home.runs.mkdir(mode=0o700)
            Signer.load_or_create(home.signing_key)
            write_atomic(home.secret, secrets.token_bytes(SECRET_BYTES))
            certificates.create(path, settings.name, settings.host)
            home.record("init", federation=settings.name, host=settings.host)
            SETTINGS.write(home.path / "server.json", asdict(settings))
        except BaseException:
            shutil.rmtree(path)
            raise
        return home

    @classmethod
    def open(cls, path: Path) -> ServerHome:
        """An existing coordinator.

        Raises:
            ConfigError: the folder holds none.
        """
        if not (path / "server.json").is_file():
            raise ConfigError(f"{str(path)!r} holds no coordinator; make one with 'fedpeft server init'")
        return cls(path)

    @property
    def settings(self) -> Settings:
        """``server.json``.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return Settings(**SETTINGS.read(self.path / "server.json", {}))
        except (ConfigError, TypeError):
            raise ConfigError(f"{self.path / 'server.json'} is damaged; restore it from a backup") from None

    @property
    def signing_key(self) -> Path:
        """The coordinator's Ed25519 key."""
        return self.path / "coordinator.key"

    @property
    def signer(self) -> Signer:
        """The coordinator's key, read.

        Raises:
            ConfigError: it is missing; a new one would be another coordinator.
        """
        if not self.signing_key.is_file():
            raise ConfigError(f"{self.signing_key} is missing; restore it from a backup")
        return Signer.load_or_create(self.signing_key)

    @property
    def secret(self) -> Path:
        """File of the secret without which the port on loopback answers nothing."""
        return self.path / "secret"

    @property
    def link(self) -> SuperLink:
        """The link as processes of this machine reach it.

        Raises:
            ConfigError: the secret is missing.
        """
        from fedpeft.flower.superlink.superlink import SuperLink

        try:
            return SuperLink(self.settings.inside, self.secret.read_bytes())
        except OSError:
            raise ConfigError(f"{self.secret} is missing; restore it from a backup") from None

    @property
    def runs(self) -> Path:
        """Folder of all run directories."""
        return self.path / "runs"

    @property
    def log(self) -> Path:
        """What the service did, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def operator_log(self) -> SignedLog:
        """What operators did: who was let in, approved and revoked, which runs were submitted and stopped."""
        return SignedLog(self.path / "operators.jsonl", self.signer, OPERATOR_LOG)

    def record(self, action: str, **facts: str | float) -> None:
        """Write down what an operator is about to do; called before it takes effect, so that none is missing.

        An act that fails afterwards stands there all the same.

        Raises:
            RunError: the log was cut or changed; nothing may be done until its newest copy is restored.
            OSError: it cannot be written.
        """
        self.operator_log.append({"time": time.time(), "uid": os.getuid(), "action": action, **facts})

    def run(self, name: str) -> Path:
        """The directory of a submitted run.

        Raises:
            RunError: there is none of this name.
        """
        if not valid_name(name) or not (self.runs / name / "status.json").is_file():
            known = ", ".join(path.name for path in self.run_folders()) or "none"
            raise RunError(f"no run {name!r}; the runs are: {known}")
        return self.runs / name

    def run_folders(self) -> list[Path]:
        """All submitted runs, oldest first."""
        folders = [path.parent for path in self.runs.glob("*/status.json") if valid_name(path.parent.name)]
        return sorted(folders, key=lambda path: (_date(path / "config.toml"), path.name))

    @contextmanager
    def locked(self, name: str) -> Generator[None]:
        """Hold the home's lock of a name, waiting for it: nobody else changes these files meanwhile."""
        with (self.path / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _date(path: Path) -> float:
    """When a file was written; 0 if there is none."""
    return path.stat().st_mtime if path.exists() else 0.0


def take_lock(path: Path) -> IO[str] | None:
    """An exclusive lock that lasts as long as the file is open; None if another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_up(home: ServerHome) -> bool:
    """Whether a service runs on this home."""
    lock = take_lock(home.path / "up.lock")
    if lock is None:
        return True
    lock.close()
    return False


def read_status(run: Path) -> RunStatus:
    """``status.json`` of a run.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return RunStatus(**STATUS.read(run / "status.json", {}))
    except (OSError, ConfigError, TypeError):
        raise RunError(f"{run / 'status.json'} is missing or damaged; submit the run again") from None


def write_status(run: Path, status: RunStatus) -> None:
    """Replace ``status.json``."""
    STATUS.write(run / "status.json", asdict(status))
