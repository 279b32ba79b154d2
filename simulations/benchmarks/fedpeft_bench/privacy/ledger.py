"""What the privacy ledger costs, and whether it survives being killed."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedpeft.data import Record
from fedpeft.privacy.ledger import Budget, Chain, Entry, Ledger, entry_bodies
from fedpeft.privacy.ledger.chain import Row
from fedpeft.privacy.ledger.store import insert, session, transaction
from fedpeft.privacy.ledger.store import rows as rows_of
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.trust import Signer
from fedpeft_bench.harness.command import child_json, machine
from fedpeft_bench.harness.timing import ONE_THREAD
from fedpeft_bench.privacy import ledger_kills
from fedpeft_clients.governance.record_overlap import hashes, share

SIZES = (0, 100, 2000)
PAIRS = 30
REPEATS = 20
RECORDS = 1_000_000
"""Of a data set whose records are hashed and compared with those of another lineage."""
BUDGET = Budget(1000.0, 900.0)
"""Far above what is spent here, so that the coarse bound accepts."""
KEY = Signer.from_seed(b"benchmark")
PLANS = tuple(PrivacyPlan(0.005 + 0.0005 * i, 0.8 + 0.04 * i, 1.0, 8, 5, 9999, 1e-5) for i in range(PAIRS))
"""Thirty different rates and noise multipliers."""


def run(kills: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Time the ledger and, if asked for, kill its users.

    Args:
        kills: SIGKILLs; 0: none.
        report: receives a line about what is being measured.
    """
    facts: dict[str, Any] = {"machine": machine(), "reserve": []}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            report(f"reserve with {size} entries, {PAIRS} pairs of rate and noise")
            facts["reserve"].append(_reserve(Path(folder) / f"{size}.sqlite", size))
        report("append and verify")
        facts["append_ms"] = _append(Path(folder) / "append.sqlite")
        facts["verify_2000_ms"] = _verify(Path(folder) / "2000.sqlite")
    report(f"know {RECORDS} records again")
    facts["records"] = _records()
    if kills:
        report(f"{kills} kills of {ledger_kills.WORKERS} racing processes")
        facts["kills"] = kill(kills)
    return facts


def kill(kills: int) -> dict[str, Any]:
    """The campaign of `ledger_kills`, in a process of its own.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", ledger_kills.__name__, str(kills)]
    return child_json(command, "the campaign", ONE_THREAD)


def intact(facts: dict[str, Any]) -> bool:
    """Whether the campaign, if there was one, found no fault."""
    kills = facts.get("kills", {})
    return not any(kills.get(fault) for fault in ("lost", "overspent", "twice", "damaged"))


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The table."""
    lines: list[tuple[str, str]] = []
    for timing in facts["reserve"]:
        what = f"reserve, {timing['entries']} entries"
        lines.append((f"{what}, first in a new process", f"{timing['first_ms']:.0f} ms"))
        cached = f"{timing['cached_ms']:.1f} ({timing['worst_ms']:.1f}) ms"
        cached += f", cpu {timing['cached_cpu_ms']:.1f} ms"
        lines.append((f"{what} and {PAIRS} pairs, cached: median (worst)", cached))
    lines.append(("append one signed entry, on disk", f"{facts['append_ms']:.2f} ms"))
    lines.append(("verify 2000 signed entries", f"{facts['verify_2000_ms']:.0f} ms"))
    known = facts["records"]
    lines.append((f"hash {RECORDS} records, cpu", f"{known['hash_s']:.1f} s"))
    compared = f"{known['compare_s']:.1f} s, {known['known']:.0f} known"
    lines.append((f"compare {RECORDS} with as many, cpu", compared))
    lines.append(("their hashes", f"{known['bytes'] / 1e6:.0f} MB"))
    return lines + [(f"kills: {name}", f"{value:.0f}") for name, value in facts.get("kills", {}).items()]


def _reserve(path: Path, size: int) -> dict[str, Any]:
    """Fill a ledger, then time the first reservation of a new process, and later ones."""
    _fill(path, size)
    script = (
        "import sys, time; from fedpeft_bench.privacy.ledger import BUDGET, KEY, PLANS, Ledger, Path; "
        "ledger = Ledger(Path(sys.argv[1]), BUDGET, KEY); start = time.perf_counter(); "
        "ledger.reserve('data', 'first', 1, PLANS[0], 5); print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    ledger = Ledger(path, BUDGET, KEY)
    for index, plan in enumerate(PLANS):
        ledger.reserve("data", "warm", index, plan, 5)
    busy = time.process_time()
    times = [_seconds(ledger.reserve, "data", "run", i, PLANS[i % PAIRS], 5) for i in range(REPEATS)]
    busy = time.process_time() - busy
    return {
        "entries": size,
        "first_ms": 1e3 * float(done.stdout),
        "cached_ms": 1e3 * statistics.median(times),
        "worst_ms": 1e3 * max(times),
        "cached_cpu_ms": 1e3 * busy / REPEATS,
    }


def _fill(path: Path, size: int) -> None:
    """Entries of a signed ledger: the key, then rounds that were reserved, started and released in turn."""
    Ledger(path, BUDGET, KEY)
    chain, rows = Chain(), list[Row]()
    with session(path) as db, transaction(db):
        for index in range(size):
            row = chain.next_row(entry_bodies.stamped(_body(index), time.time()), KEY)
            chain = Chain((), (Entry(row.seq, {}, row.hash),), KEY.public)
            rows.append(row)
        for row in rows:
            insert(db, row)


def _body(index: int) -> entry_bodies.Body:
    if index == 0:
        return entry_bodies.key(KEY.public)
    round, state = divmod(index - 1, 3)
    reservation = 3 * round + 2
    if state == 1:
        return entry_bodies.started(reservation)
    if state == 2:
        return entry_bodies.released(reservation, f"{reservation:064x}")
    body = entry_bodies.reserve("data", "filled", round, PLANS[round % PAIRS], 5)
    return body | {"content": None, "epsilon": None, "attempt": 1}


def _append(path: Path) -> float:
    """Milliseconds until a short signed entry is on the disk, the median of many."""
    ledger = Ledger(path, BUDGET, KEY)
    plan = PLANS[0]
    reservations = [ledger.reserve("data", "run", index, plan, 5) for index in range(REPEATS)]
    return 1e3 * statistics.median(_seconds(ledger.started, reservation) for reservation in reservations)


def _verify(path: Path) -> float:
    """Milliseconds to check every hash and signature, in a chain that nobody has seen yet."""
    with session(path) as db:
        rows = rows_of(db)[:2000]
    return 1e3 * _seconds(Chain().extended, rows)


def _records() -> dict[str, float]:
    """CPU seconds to hash a million records of some 200 characters, and to find the half that is known."""
    words = [f"word{number * 7919 % 10007}" for number in range(40)]

    def record(number: int) -> Record:
        return Record(f"{number} {' '.join(words[number % 17 :])}", f"answer {number}")

    start = time.process_time()
    stored_hashes = hashes(map(record, range(RECORDS)), KEY.secret)
    middle = time.process_time()
    other = hashes(map(record, range(RECORDS // 2, RECORDS * 3 // 2)), KEY.secret)
    begun = time.process_time()
    known = share(other, stored_hashes)[0]
    compared = time.process_time() - begun
    return {
        "known": known,
        "hash_s": middle - start,
        "compare_s": compared,
        "bytes": float(stored_hashes.nbytes),
    }


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start
