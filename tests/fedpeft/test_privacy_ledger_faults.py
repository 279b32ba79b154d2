"""Killed at every point, racing, and on a full disk: nothing is lost, nothing is overspent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(0.1, 1.0, 1.0, 8, 5, 4, 1e-5)

HEAD = """
import os, resource, signal, sqlite3, sys, time
from contextlib import contextmanager
from pathlib import Path
from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger import Ledger, store
path = Path(sys.argv[1])
"""
"""Children spend without a plan, which needs no accountant and so no second of imports."""

DIES = """
at, when = sys.argv[2], int(sys.argv[3])
seen, connect = [], store.connect

@contextmanager
def traced(path, mode="rw"):
    with connect(path, mode) as db:
        db.set_trace_callback(watch)
        yield db

def watch(statement):
    seen.extend([1] if statement.startswith(at) else [])
    if len(seen) == when:
        os.kill(os.getpid(), signal.SIGKILL)

ledger = Ledger(path)
store.connect = traced
reservation = ledger.reserve("patients", "run", 1, None, 5)
print("reserved", flush=True)
ledger.started(reservation)
print("started", flush=True)
ledger.released(reservation, "ab" * 32)
print("released", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

FULL = """
ledger = Ledger(path)
seen = []
limit()
try:
    for round in range(1, 10000):
        reservation = ledger.reserve("patients", "run", round, None, 5)
        seen.append(reservation.head)
        seen.append(ledger.started(reservation))
except PrivacyError as error:
    print(error)
assert len(seen) > 10 and ledger.head() == seen[-1] and ledger.verify(seen[0]) == seen[-1]
free()
fresh = Ledger(path)
assert fresh.verify(seen[-1]) == seen[-1] and len(fresh.entries()) == len(seen)
fresh.reserve("patients", "run", 10000, None, 5)
"""

LIMITED = """
def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, resource.RLIM_INFINITY))

def free():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

SMALL = """
ballast = path.with_name("ballast")
ballast.write_bytes(bytes(100000))

def limit():
    pass

def free():
    ballast.unlink()
"""

FROZEN = """
import subprocess
ledger = Ledger(path)
known = ledger.reserve("patients", "run", 1, None, 5).head
folder = str(path.parent)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for call in (
    lambda: ledger.reserve("patients", "run", 2, None, 5),
    lambda: Ledger(path).reserve("patients", "run", 2, None, 5),
    lambda: Ledger(path.parent / "new" / "ledger.sqlite"),
):
    try:
        call()
    except PrivacyError as error:
        print(error)
subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
assert ledger.verify(known) == known
"""


def child(script, *arguments, prefix=()):
    return subprocess.run(
        [*prefix, sys.executable, "-c", HEAD + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("statement", "when", "said", "kinds"),
    [
        ("BEGIN", 1, [], []),
        ("INSERT", 1, [], []),
        ("COMMIT", 1, [], []),
        ("BEGIN", 2, ["reserved"], ["reserve"]),
        ("COMMIT", 2, ["reserved"], ["reserve"]),
        ("INSERT", 3, ["reserved", "started"], ["reserve", "started"]),
        ("COMMIT", 3, ["reserved", "started"], ["reserve", "started"]),
        ("never", 1, ["reserved", "started", "released"], ["reserve", "started", "released"]),
    ],
)
def test_a_kill_at_each_point_leaves_what_was_acknowledged(tmp_path, statement, when, said, kinds):
    path = tmp_path / "ledger.sqlite"
    done = child(DIES, path, statement, when)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == said
    ledger = Ledger(path)
    ledger.verify()
    assert [entry.kind for entry in ledger.entries()] == kinds
    assert ledger.reserve("patients", "run", 1, None, 5).attempt == (2 if "started" in kinds else 1)


def test_a_limit_on_the_size_of_files_is_one_clear_error(tmp_path):
    done = child(LIMITED + FULL, tmp_path / "ledger.sqlite")
    assert done.returncode == 0, done.stderr
    assert "nothing was spent and no data may be opened" in done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """A folder, and a prefix for commands to which it is a disk of 400 kB, in a mount space of their own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=400k tmpfs "{disk}" && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    return disk, prefix


def test_a_full_disk_is_one_clear_error(small_disk):
    disk, prefix = small_disk
    done = child(SMALL + FULL, disk / "ledger.sqlite", prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert "nothing was spent and no data may be opened" in done.stdout and "full" in done.stdout


def test_a_read_only_folder_is_one_clear_error(small_disk):
    disk, prefix = small_disk
    done = child(FROZEN, disk / "ledger.sqlite", prefix=prefix)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("nothing was spent" in line for line in lines)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PrivacyError, match="nothing was spent"):
        Ledger(tmp_path / "file" / "node" / "ledger.sqlite")


def test_a_charge_that_another_process_overtakes_is_priced_again(tmp_path, monkeypatch):
    budget = PLAN.epsilon(5) * 1.001
    slow, quick = (Ledger(tmp_path / "ledger.sqlite", budget) for _ in range(2))
    price, overtaken = slow._quote, []

    def offer(chain, body):
        priced = price(chain, body)
        if not overtaken:
            overtaken.append(quick.reserve("patients", "quick", 1, PLAN, 5))
        return priced

    monkeypatch.setattr(slow, "_quote", offer)
    with pytest.raises(PrivacyError, match="nothing was spent"):
        slow.reserve("patients", "slow", 1, PLAN, 5)
    assert slow.head() == overtaken[0].head
    assert slow.spent("patients") <= budget


def test_a_charge_gets_on_however_often_it_is_overtaken(tmp_path, monkeypatch):
    slow, quick = (Ledger(tmp_path / "ledger.sqlite") for _ in range(2))
    see, rounds = slow._seen, []

    def seen(db):
        chain = see(db)
        if not db.in_transaction:
            rounds.append(quick.reserve("patients", "quick", len(rounds), PLAN, 5))
        return chain

    monkeypatch.setattr(slow, "_seen", seen)
    last = slow.reserve("patients", "slow", 1, PLAN, 5)
    assert len(rounds) == 3 and last.head.seq == 4
    assert last.epsilon == pytest.approx(PLAN.epsilon(20), rel=0.01)


def test_a_few_random_kills_of_racing_workers():
    from fedpeft_bench.privacy.ledger import intact, kill

    found = kill(6)
    assert found["kills"] == 6
    assert intact({"kills": found}), found


@pytest.mark.slow
def test_a_thousand_random_kills_of_racing_workers():
    from fedpeft_bench.privacy.ledger import intact, kill

    found = kill(1000)
    assert found["kills"] == 1000 and found["acknowledged"] > 200 and found["exhausted"] > 20
    assert intact({"kills": found}), found


@pytest.mark.slow
def test_a_cached_reservation_takes_less_than_fifty_milliseconds():
    from fedpeft_bench.privacy.ledger import run

    found = run(0, lambda line: None)["reserve"]
    assert [row["entries"] for row in found] == [0, 100, 2000]
    assert all(row["cached_cpu_ms"] < 50 for row in found), found
