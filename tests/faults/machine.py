"""What the machine lends to faults: small disks that fill, a cable to pull, clocks to set. Root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLOCKS = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
"""libfaketime; Debian's package of this name puts it there."""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass(frozen=True)
class Disk:
    """A small file system in memory."""

    path: Path

    def fill(self, seconds: float) -> None:
        """Leave no free byte for a while."""
        filler = self.path / "filler"
        with filler.open("wb") as file:
            with contextlib.suppress(OSError):
                free = os.statvfs(self.path)
                os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))
        time.sleep(seconds)
        filler.unlink()


@contextmanager
def small_disk(path: Path, mib: int) -> Generator[Disk | None]:
    """A disk at a path; None where mounting is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "fedpeft-faults", str(path))
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield Disk(path)
    finally:
        _run("umount", "--lazy", str(path))


@dataclass(frozen=True)
class Cable:
    """A network namespace and the pair of interfaces that joins it to this machine.

    Attributes:
        namespace: in which a node runs.
        host: address of this machine's end; nothing outside this machine reaches it.
    """

    namespace: str
    host: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What starts a command at the far end."""
        return ("ip", "netns", "exec", self.namespace)

    def pull(self, seconds: float) -> None:
        """Cut the network for a while: packets vanish, no connection is reset."""
        self._set("down")
        time.sleep(seconds)
        self._set("up")

    def _set(self, state: str) -> None:
        _run(*self.prefix, "ip", "link", "set", "far", state)


@contextmanager
def cable(number: int) -> Generator[Cable | None]:
    """A namespace of its own; None where that is not allowed."""
    name, near, net = f"fedpeft-{number}", f"fpnear{number}", f"10.213.{number % 256}"
    made = Cable(name, f"{net}.1")
    try:
        _run("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
        _run("ip", "address", "add", f"{net}.1/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run(*made.prefix, "ip", "link", "set", "lo", "up")
        _run(*made.prefix, "ip", "address", "add", f"{net}.2/30", "dev", "far")
        _run(*made.prefix, "ip", "link", "set", "far", "up")
        yield made
    finally:
        _run("ip", "netns", "delete", name)


@dataclass(frozen=True)
class Clock:
    """The wall clock of one process, which follows a file."""

    file: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Of the process."""
        return {
            "LD_PRELOAD": str(CLOCKS[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Differ from the true time by so much."""
        self.file.write_text(f"{seconds:+d}s\n")

    def skew(self, offset: int, seconds: float) -> None:
        """Be wrong for a while."""
        self.set(offset)
        time.sleep(seconds)
        self.set(0)


def clock(file: Path) -> Clock | None:
    """A clock; None where libfaketime is not installed."""
    if not CLOCKS:
        return None
    made = Clock(file)
    made.set(0)
    return made
