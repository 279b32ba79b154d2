"""Figures of a deployment that works: what it costs to set up, a round's overhead, memory, and what leaks.

``python tests/faults/measures.py setup|rounds|memory``; the tests beside this file use the same functions.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from deployment import FEDPEFT, Deployment, await_end, rounds_of, status_of
from processes import resident_kib

PAIR = ("org-0", "org-1")
TINY = {"adapter.rank": 1, "data.max_length": 16}


@contextmanager
def pair(root: Path, poll: float | None = None, **data: Any) -> Generator[Deployment]:
    """A coordinator and two nodes, named as the scenario names its organisations."""
    deployment = Deployment(root)
    try:
        deployment.begin()
        for file in deployment.write_data(PAIR, **data).values():
            node = deployment.join(file.stem, file)
            own = [FEDPEFT, "node", "run", "--home", str(node.home)]
            deployment.run(node, [*own, *(("--poll", str(poll)) if poll else ())])
        yield deployment
    finally:
        left = deployment.close()
        assert not left, left


def done(run: Path, seconds: float = 300.0) -> list[dict[str, Any]]:
    """The rounds of a run that has to succeed."""
    status = await_end(run, seconds)
    assert status["state"] == "done", status
    return rounds_of(run)


def setup_cost(root: Path, rounds: int = 3) -> dict[str, float]:
    """From two installs to a federation that has done its rounds: seconds, CPU seconds of all processes."""
    before, began = _cpu(), time.monotonic()
    with pair(root) as deployment:
        told = done(deployment.submit("setup", {"federation.rounds": rounds}))
        wall = time.monotonic() - began
        trained = sum(_trained(node.home) for node in deployment.nodes.values())
    assert len(told) == rounds
    spent = _cpu() - before
    return {"wall_s": wall, "cpu_s": spent, "trained_s": trained, "beyond_training_s": spent - trained}


def round_overhead(root: Path, poll: float | None, rounds: int = 20, **settings: Any) -> dict[str, float]:
    """What a round of two warm nodes takes besides training, the first five rounds left out."""
    with pair(root, poll) as deployment:
        told = done(deployment.submit("warm", {"federation.rounds": rounds, **settings}))[5:]
    overhead = [event["overhead_s"] for event in told]
    return {
        "rounds": len(told),
        "median_s": statistics.median(overhead),
        "worst_s": max(overhead),
        "train_s": statistics.median(event["train_s"] for event in told),
    }


def memory(root: Path, rounds: int = 200, warm: int = 20) -> dict[str, tuple[float, float]]:
    """Resident MiB of link and coordinator, medians after the warm-up and at the end."""
    with pair(root, 0.1) as deployment:
        run = deployment.submit("long", {"federation.rounds": rounds, **TINY})
        seen: list[tuple[int, float, float]] = []
        while status_of(run)["state"] not in ("done", "failed"):
            pids = deployment.child("link"), deployment.child("run")
            if all(pids) and (number := len(rounds_of(run))):
                sizes = [_resident(pid) for pid in pids]
                seen.append((number, *sizes))
            time.sleep(0.5)
        done(run)
    parts = {}
    for index, part in enumerate(("link", "coordinator"), 1):
        early = [one[index] for one in seen if warm <= one[0] < 2 * warm and one[index]]
        late = [one[index] for one in seen if rounds - warm <= one[0] < rounds and one[index]]
        parts[part] = (statistics.median(early), statistics.median(late))
    return parts


def simulated(deployment: Deployment, settings: Sequence[str]) -> Path:
    """The run directory of a simulation of what was submitted last, with the same settings."""
    out = deployment.root / "simulated"
    command = [FEDPEFT, "simulate", str(deployment.scenario), "--out", str(out), "--json", *settings]
    told = subprocess.run(command, capture_output=True, text=True, env=deployment.environment)
    assert told.returncode == 0, told.stderr
    return out


def hits(needle: str, places: Iterable[Path]) -> list[str]:
    """Files below some places that hold a text, in any of the forms in which a program may write it."""
    forms = [needle.encode(code) for code in ("utf-8", "utf-16-le", "utf-32-le")]
    forms += [needle.encode().hex().encode(), needle.lower().encode()]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
    return [str(path) for path in files if path.is_file() and _holds(path, forms)]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _holds(path: Path, forms: Sequence[bytes]) -> bool:
    data = path.read_bytes()
    return any(form in data for form in forms)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _trained(home: Path) -> float:
    import json

    lines = [line for path in home.glob("runs/*/*.jsonl") for line in path.read_text().splitlines()]
    return sum(facts["train_s"] for facts in map(json.loads, filter(None, lines)) if "train_s" in facts)


def _resident(pid: int) -> float:
    try:
        return resident_kib(pid) / 1024
    except OSError:
        return 0.0


def main() -> None:
    """Print one figure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="fedpeft-measure-") as folder:
        root = Path(folder)
        chosen = {
            "setup": lambda: setup_cost(root),
            "rounds": lambda: round_overhead(root, None),
            "quick": lambda: round_overhead(root, 0.1),
            "memory": lambda: memory(root),
        }
        print(sys.argv[1], chosen[sys.argv[1]]())


if __name__ == "__main__":
    main()
