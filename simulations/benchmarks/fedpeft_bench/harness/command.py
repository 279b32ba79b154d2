"""Running ``fedpeft`` as a user does, and reading what it says."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fedpeft.errors import RunError

COMMAND = (sys.executable, "-m", "fedpeft")


def simulate(out: Path, settings: Sequence[str] = (), extra: Sequence[str] = ()) -> dict[str, Any]:
    """Run ``fedpeft simulate`` into ``out`` and return its ``run.json``.

    Raises:
        RunError: the command failed.
    """
    options = [part for setting in settings for part in ("--set", setting)]
    command = [*COMMAND, "simulate", "--out", str(out), "--json", *options, *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"fedpeft simulate failed ({done.returncode}): {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def child_json(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run a measuring process and return the JSON in the last line that it prints.

    Args:
        command: of the process.
        what: it is, for the error.
        environment: set beside that of this process.

    Raises:
        RunError: the process failed.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise RunError(f"{what} failed ({done.returncode}): {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(command: Sequence[str]) -> int:
    """Peak resident memory of one command, its children left out, in bytes.

    Raises:
        RunError: the command failed.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RunError(f"the benchmarked command failed ({child.returncode}): {' '.join(command)}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Machine and date, to be written beside the figures."""
    cores, memory = os.cpu_count(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.machine()}, {cores} cores, {memory:.0f} GiB, {date.today().isoformat()}"
