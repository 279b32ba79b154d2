"""Making a coordinator's folder from what the operator typed."""

from __future__ import annotations

from pathlib import Path

from fedpeft.errors import ConfigError
from fedpeft.protocol.enrolment import valid_name
from fedpeft.trust import certificate_fingerprint, fingerprint
from fedpeft_server.service.server_home import PORTS, ServerHome, Settings, bind_address, coordinators

LARGEST_PORT = 65535
_UNSPECIFIED = ("0.0.0.0", "::")


def make(
    home: Path | None, name: str, host: str, bind: str | None, ports: tuple[int | None, ...]
) -> tuple[ServerHome, dict[str, str]]:
    """A new coordinator; and the fingerprints of its CA and of its signing key.

    Args:
        home: its folder; None: the default one of its name.
        name: of the federation.
        host: under which nodes reach it.
        bind: what to listen on; None: as the host says.
        ports: public, enrolment, inside and metrics; None: the next free number after the public one.

    Raises:
        ConfigError: a name, host or port that cannot be used, or the folder exists.
    """
    if not valid_name(name):
        raise ConfigError(f"--name {name!r}: use 1 to 64 letters, digits, '.', '_' or '-'")
    settings = Settings(name, _host(host), bind or bind_address(host), **_numbers(ports))
    made = ServerHome.create(home or coordinators() / name, settings)
    ca = certificate_fingerprint((made.path / "ca.crt").read_bytes())
    return made, {"ca": ca, "key": fingerprint(made.signer.public)}


def _host(host: str) -> str:
    """A host that a certificate can be made out to."""
    if host in _UNSPECIFIED:
        raise ConfigError(f"--host {host} is no address that nodes can reach; use it as --bind")
    fit = host.isascii() and 0 < len(host) <= 253 and all(c.isalnum() or c in ".-:" for c in host)
    if not fit:
        raise ConfigError(f"--host {host!r} is neither a name nor an address")
    return host


def _numbers(ports: tuple[int | None, ...]) -> dict[str, int]:
    first = ports[0] or 0
    numbers = [first + index if port is None else port for index, port in enumerate(ports)]
    if max(numbers) > LARGEST_PORT or len(set(numbers)) < len(numbers):
        requested = ", ".join(f"{name} {port}" for name, port in zip(PORTS, numbers, strict=True))
        raise ConfigError(f"ports must differ and be at most {LARGEST_PORT}; they would be: {requested}")
    return dict(zip(PORTS, numbers, strict=True))
