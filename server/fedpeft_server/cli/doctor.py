"""What can be wrong with a coordinator before anybody notices."""

from __future__ import annotations

import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedpeft import __version__
from fedpeft.cli.output import quantity
from fedpeft.errors import FedPeftError
from fedpeft_server.service import certificates
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import PORTS, ServerHome, is_up, read_status

LEAST_DISK = 1_000_000_000
FEW_DAYS = 14.0
SECRET_FILES = ("coordinator.key", "ca.key", "server.key", "secret")
FLOWER = "1.41."
_CONNECT_SECONDS = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, whether it is good, and the fact."""

    what: str
    good: bool
    text: str


def examine(home: ServerHome) -> list[Finding]:
    """Look at everything; nothing is changed.

    Raises:
        ConfigError: ``server.json`` is damaged.
    """
    return [*_ports(home), *_certificates(home), *_modes(home), _disk(home), *_versions(), *_files(home)]


def _ports(home: ServerHome) -> Iterator[Finding]:
    """Each port is free, or listened on by our own service."""
    settings, up = home.settings, is_up(home)
    yield Finding("service", True, "runs" if up else "does not run")
    for name in PORTS:
        port: int = getattr(settings, name)
        address = settings.bind if name in PORTS[:2] else "127.0.0.1"
        yield _port(f"{name} {port} on {address}", address, port, up)


def _port(what: str, address: str, port: int, up: bool) -> Finding:
    if up:
        listening = _listens(address, port)
        return Finding(
            what, listening, "ours" if listening else "the service runs, but nothing listens; see link.log"
        )
    cause = _bindable(address, port)
    return Finding(what, not cause, cause or "free")


def _listens(address: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _bindable(address: str, port: int) -> str:
    """Why a port cannot be listened on; empty: it can."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    return ""


def _certificates(home: ServerHome) -> Iterator[Finding]:
    for name, what in (("ca.crt", "CA certificate"), ("server.crt", "server certificate")):
        try:
            left = certificates.days_left(certificates.load(home.path / name))
        except FedPeftError as error:
            yield Finding(what, False, str(error))
        else:
            hint = "" if left > FEW_DAYS else "; 'fedpeft server renew' makes a new one"
            yield Finding(what, left > FEW_DAYS, f"{left:.0f} days left{hint}")
    try:
        good = certificates.belongs(home.path)
    except FedPeftError as error:
        yield Finding("certificate chain", False, str(error))
    else:
        yield Finding("certificate chain", good, "whole" if good else "server.crt, server.key, ca.crt differ")


def _modes(home: ServerHome) -> Iterator[Finding]:
    """Nobody but the owner reads the folder and the keys."""
    yield _mode(home.path, 0o700)
    for name in SECRET_FILES:
        yield _mode(home.path / name, 0o600)


def _mode(path: Path, allowed: int) -> Finding:
    if not path.exists():
        return Finding(path.name, False, "is missing; restore it from a backup")
    mode = stat.S_IMODE(path.stat().st_mode)
    good = not mode & ~allowed
    text = f"mode {mode:04o}" if good else f"mode {mode:04o}: chmod {allowed:04o} {path}"
    return Finding(path.name, good, text)


def _disk(home: ServerHome) -> Finding:
    free = shutil.disk_usage(home.path).free
    return Finding("disk", free >= LEAST_DISK, f"{quantity(free)} free, {quantity(LEAST_DISK)} are needed")


def _versions() -> Iterator[Finding]:
    yield Finding("fedpeft", True, f"{__version__} on Python {sys.version.split()[0]}")
    for package in ("flwr", "cryptography", "uvicorn", "prometheus-client"):
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(package, False, "is not installed")
        else:
            good = package != "flwr" or installed.startswith(FLOWER)
            yield Finding(package, good, installed if good else f"{installed}, needed is {FLOWER}*")


def _files(home: ServerHome) -> Iterator[Finding]:
    """The registry, the runs and the operator log can be read."""
    try:
        states = [node.state for node in Registry(home).nodes().values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("enrolled", "waiting", "revoked"))
        yield Finding("nodes", True, counts)
    except FedPeftError as error:
        yield Finding("nodes", False, str(error))
    try:
        yield Finding("operator log", True, f"intact, {home.operator_log.verified()[1].seq} entries")
    except FedPeftError as error:
        yield Finding("operator log", False, str(error))
    for folder in home.run_folders():
        try:
            read_status(folder)
        except FedPeftError as error:
            yield Finding(f"run {folder.name}", False, str(error))
