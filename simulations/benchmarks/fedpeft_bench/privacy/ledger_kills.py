"""Racing processes that spend privacy and are killed at random moments: is anything lost or overspent?

Run as a module, in a process of its own: it forks workers from a parent that has everything imported, so that
a kill costs milliseconds. Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.trust import Signer

PLAN = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 1000, 1e-5)
ROUNDS = 6
"""Rounds that the budget of one data set allows; then a worker goes on to the next data set."""
LINEAGES = 400
WORKERS = 2
KILLS_PER_LEDGER = 100
LATEST = 0.4
"""Seconds after its start before which a worker is killed; some dozens of entries fit in."""
KEY = Signer.from_seed(b"campaign")


@dataclass
class Tally:
    """What was counted.

    Attributes:
        kills: workers killed while they worked.
        acknowledged: entries that a worker had reported when it was killed.
        recorded: entries found in the ledgers.
        unreported: entries that were written, though their worker died before it could say so.
        lost: acknowledged entries that are not recorded.
        overspent: data sets whose joint epsilon exceeds the budget.
        exhausted: data sets whose budget is spent to the last round.
        twice: reservations that were started or released more than once.
        damaged: ledgers whose chain, signatures or file are not intact.
    """

    kills: int = 0
    acknowledged: int = 0
    recorded: int = 0
    unreported: int = 0
    lost: int = 0
    overspent: int = 0
    exhausted: int = 0
    twice: int = 0
    damaged: int = 0
    seconds: float = 0.0


@dataclass
class _Worker:
    """A forked process and the pipe on which it acknowledges entries."""

    pid: int
    pipe: int
    due: float
    seen: list[str] = field(default_factory=list[str])


def campaign(kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill workers ``kills`` times, two at a time racing on each ledger, and check all ledgers.

    Args:
        kills: SIGKILLs in all, a new ledger after every hundred.
        seed: of the moments.
    """
    chance, tally, start = random.Random(seed), Tally(), time.monotonic()
    budget = PLAN.epsilon(5 * ROUNDS) * (1 + 1e-6)
    _warm(budget)
    while tally.kills < kills:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.sqlite"
            Ledger(path, budget, KEY)
            seen = _harry(path, budget, min(KILLS_PER_LEDGER, kills - tally.kills), chance)
            tally.kills += min(KILLS_PER_LEDGER, kills - tally.kills)
            _check(path, budget, seen, tally)
    tally.seconds = time.monotonic() - start
    return vars(tally)


def _warm(budget: float) -> None:
    """Import and compose everything once, so that forked workers need not; they share the memory."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", budget, KEY)
        with suppress(PrivacyError):
            for round in range(1, ROUNDS + 2):
                ledger.started(ledger.reserve("warm", "run", round, PLAN, 5))
    gc.collect()
    gc.freeze()


def _harry(path: Path, budget: float, kills: int, chance: random.Random) -> set[str]:
    """Keep two workers racing, kill each at its moment; what they acknowledged."""
    workers: list[_Worker] = []
    seen: set[str] = set()
    for _ in range(kills):
        while len(workers) < WORKERS:
            workers.append(_fork(path, budget, time.monotonic() + chance.uniform(0.0, LATEST)))
        victim = min(workers, key=lambda worker: worker.due)
        time.sleep(max(0.0, victim.due - time.monotonic()))
        workers.remove(victim)
        seen |= _killed(victim)
    for worker in workers:
        seen |= _killed(worker)
    return seen


def _fork(path: Path, budget: float, due: float) -> _Worker:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _work(path, budget, write)
    os.close(write)
    return _Worker(pid, read, due)


def _killed(worker: _Worker) -> set[str]:
    """Kill a worker and read the whole lines that it wrote."""
    os.kill(worker.pid, signal.SIGKILL)
    os.waitpid(worker.pid, 0)
    with os.fdopen(worker.pipe) as pipe:
        text = pipe.read()
    lines = text[: text.rfind("\n") + 1].splitlines()
    if broken := [line for line in lines if line.startswith("error")]:
        raise RuntimeError(broken[0])
    return set(lines)


def _work(path: Path, budget: float, pipe: int) -> NoReturn:
    """Reserve, start and release rounds of one data set after the other until killed."""
    try:
        ledger = Ledger(path, budget, KEY)
        run = f"run-{os.getpid()}"
        for lineage in range(LINEAGES):
            with suppress(PrivacyError):
                for round in range(1, ROUNDS + 2):
                    _round(ledger, f"data-{lineage}", run, round, pipe)
        os.write(pipe, b"error: a worker ran out of data sets\n")
    except BaseException as error:
        os.write(pipe, f"error: {error!r}\n".encode())
    os._exit(1)


def _round(ledger: Ledger, lineage: str, run: str, round: int, pipe: int) -> None:
    reservation = ledger.reserve(lineage, run, round, PLAN, 5)
    os.write(pipe, f"{reservation.head.seq} {reservation.head.hash}\n".encode())
    ledger.started(reservation)
    head = ledger.released(reservation, f"{reservation.head.seq:064x}")
    os.write(pipe, f"{head.seq} {head.hash}\n".encode())


def _check(path: Path, budget: float, seen: set[str], tally: Tally) -> None:
    """Open the ledger afresh, as after a power cut, and compare it with what was acknowledged."""
    ledger = Ledger(path, budget, KEY)
    try:
        ledger.verify(key=KEY.public)
        with sqlite3.connect(path) as db:
            tally.damaged += db.execute("PRAGMA integrity_check").fetchone() != ("ok",)
        db.close()
    except PrivacyError:
        tally.damaged += 1
        return
    entries = ledger.entries()
    recorded = {f"{entry.seq} {entry.hash}" for entry in entries}
    reportable = {f"{entry.seq} {entry.hash}" for entry in entries if entry.kind in ("reserve", "released")}
    tally.acknowledged += len(seen)
    tally.recorded += len(recorded)
    tally.lost += len(seen - recorded)
    tally.unreported += len(reportable - seen)
    opened = [(e.kind, e.body["reservation"]) for e in entries if e.kind in ("started", "released")]
    tally.twice += len(opened) - len(set(opened))
    for lineage in {entry.body["lineage"] for entry in entries if entry.kind == "reserve"}:
        tally.overspent += ledger.spent(lineage) > budget
        tally.exhausted += sum(entry.concerns(lineage) for entry in entries) == ROUNDS


if __name__ == "__main__":
    print(json.dumps(campaign(int(sys.argv[1]))))
