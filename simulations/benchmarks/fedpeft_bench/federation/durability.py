"""Memory over the number of nodes, and what a run is worth that is killed again and again."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpeft_bench.harness.command import COMMAND, peak_memory, simulate

SMALL = (
    "run.baselines=[]",
    "audit.enabled=false",
    "federation.local_steps=2",
    "data.samples=32",
    "data.test_samples=32",
)


def memory(counts: tuple[int, int] = (2, 50)) -> dict[str, Any]:
    """Peak resident memory of a small and a large simulation of the embedded federation, and their ratio."""
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            settings = [*SMALL, f"federation.nodes={count}", "federation.rounds=2"]
            options = [part for setting in settings for part in ("--set", setting)]
            out = str(Path(folder) / str(count))
            peaks.append(peak_memory([*COMMAND, "simulate", "--out", out, "--json", *options]))
    return {"nodes": list(counts), "peak_bytes": peaks, "ratio": peaks[1] / peaks[0]}


def kills(count: int, seed: int = 0, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Kill a run with SIGKILL at random moments, resume it each time, and compare with an undisturbed run.

    Args:
        count: kills in all; when a run reaches its end before that, the next one is harried.
        seed: of the moments.
        report: receives a line for each kill.

    Returns:
        Number of kills and whether adapter and envelopes are the same, bit for bit.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "calm"
        settings = [*SMALL, "federation.rounds=40"]
        start = time.monotonic()
        work = simulate(calm, settings)["time"]["total_s"]
        latest = time.monotonic() - start - work + 2 * work / count
        struck, same = 0, {"adapter": True, "updates": True}
        while struck < count:
            harried = Path(folder) / f"harried-{struck}"
            while struck < count and _killed_after(harried, settings, delay := moments.uniform(0.2, latest)):
                struck += 1
                if report:
                    report(f"kill {struck} after {delay:.1f} s")
            subprocess.run(_arguments(harried, settings), check=True, capture_output=True)
            same = {part: same[part] and _hash(calm / part) == _hash(harried / part) for part in same}
    return {"kills": struck, **{f"same_{part}": equal for part, equal in same.items()}}


def _arguments(out: Path, settings: list[str]) -> list[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    begun = ["--resume"] if (out / "config.toml").exists() else options
    return [*COMMAND, "simulate", "--out", str(out), "--json", *begun]


def _killed_after(out: Path, settings: list[str], seconds: float) -> bool:
    child = subprocess.Popen(_arguments(out, settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return True


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(
        item for item in folder.rglob("*") if item.suffix in (".safetensors", ".fpd", ".json")
    ):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
