"""The SQLite file of a ledger: write-ahead log, synchronous, append-only; errors in plain words."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.errors import PrivacyError
from fedpeft.privacy.ledger.chain import Chain, Row, rolled_back
from fedpeft.runstore.files import sync_folder
from fedpeft.runstore.formats import newer

PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""

FORMAT = 1
"""``PRAGMA user_version`` of the file; 0 is format 1 as it was written before there was a number."""

SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
    signature BLOB);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


def create(path: Path) -> None:
    """Make the file with its table, if it is not there; two processes may try at the same time.

    Raises:
        PrivacyError: the folder cannot be written, the disk is full, or the file is something else.
    """
    deadline = time.monotonic() + PATIENCE
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with connect(path, "rwc") as db:
                    db.execute("PRAGMA journal_mode=WAL")
                    db.executescript(SCHEMA)
                return sync_folder(path.parent)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


@contextmanager
def connect(path: Path, mode: str = "rw") -> Generator[sqlite3.Connection]:
    """A connection that waits for other writers, and at each commit for the disk."""
    address = f"{path.absolute().as_uri()}?mode={mode}"
    db = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > FORMAT:
            raise PrivacyError(newer(path, version, FORMAT))
        yield db
    finally:
        db.close()


@contextmanager
def session(path: Path) -> Generator[sqlite3.Connection]:
    """A connection to an existing ledger.

    Raises:
        PrivacyError: the disk is full, or the file cannot be read or written; nothing was written then.
    """
    with explained(path), connect(path) as db:
        yield db


@contextmanager
def transaction(db: sqlite3.Connection) -> Generator[None]:
    """Hold the write lock; commit at the end, roll back on any error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise


def rows(db: sqlite3.Connection) -> list[Row]:
    """All rows in order."""
    return list(map(Row._make, _raw(db)))


def read(db: sqlite3.Connection, known: Chain) -> Chain:
    """All entries, verified; rows that equal known ones need no second look, but each is compared.

    Raises:
        PrivacyError: the ledger was changed, or lost entries that are known.
    """
    rows, count = _raw(db), len(known.rows)
    if tuple(rows[:count]) == known.rows:
        return known.extended(list(map(Row._make, rows[count:])))
    Chain().extended(list(map(Row._make, rows)))
    raise rolled_back(count)


def _raw(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    query = "SELECT seq, body, previous, hash, signature FROM entries ORDER BY seq"
    return db.execute(query).fetchall()


def insert(db: sqlite3.Connection, row: Row) -> None:
    """Append one row."""
    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn errors of SQLite and of the disk into one line that says what to do.

    Raises:
        PrivacyError: such an error happened.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise PrivacyError(_advice(path, str(error))) from error
    except sqlite3.DatabaseError as error:
        raise PrivacyError(f"{path} is not a readable ledger ({error}); restore it from a copy") from error
    except OSError as error:
        raise PrivacyError(_advice(path, f"{error.strerror or error}")) from error


def _advice(path: Path, cause: str) -> str:
    if "no such" in cause:
        return f"{path} is not a readable ledger of this version ({cause}); restore it from a copy"
    if "full" in cause:
        return (
            f"ledger {path}: {cause}; nothing was spent and no data may be opened: free space and try again"
        )
    return (
        f"ledger {path} cannot be used: {cause}; nothing was spent and no data may be opened: "
        "give its folder room and write permission"
    )
