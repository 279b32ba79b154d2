"""Entries of a ledger and the chain that ties them: hashes over hashes, each signed by one key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Event
from fedpeft.privacy.event_json import event_from_json
from fedpeft.trust.keys import KEY_BYTES, Signer, Verifier

GENESIS = "0" * 64
SPENDING = ("reserve", "spend")
FREE = ("key", "started", "released", "clock", "declared")
"""Kinds of entries that spend nothing; an unknown kind is taken to spend, and so refused."""


class Row(NamedTuple):
    """An entry as it is stored; ``body`` is the exact JSON text that the hash covers."""

    seq: int
    body: str
    previous: str
    hash: str
    signature: bytes | None


@dataclass(frozen=True)
class Head:
    """Position and hash of the newest entry; travels with each update so that a roll-back is noticed."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    seq: int
    body: dict[str, Any]
    hash: str
    signature: bytes | None = None

    @property
    def kind(self) -> Any:
        """One of `SPENDING` or `FREE`; another version may write others."""
        return self.body.get("kind")

    @property
    def time(self) -> float:
        """When it was written, seconds since 1970, UTC; 0 where it does not say."""
        moment = self.body.get("time")
        return float(moment) if isinstance(moment, int | float) else 0.0

    def concerns(self, lineage: str) -> bool:
        """Whether this entry spends privacy of a data set."""
        body = self.body
        return body.get("lineage", lineage) == lineage and body.get("kind") not in FREE

    @cached_property
    def event(self) -> Event:
        """What the accountant composes.

        Raises:
            PrivacyError: this version does not know the entry or its event.
        """
        try:
            if self.kind not in SPENDING:
                raise PrivacyError(f"an entry of kind {self.kind!r} is unknown to this version")
            return event_from_json(self.body.get("event"))
        except PrivacyError as error:
            raise PrivacyError(
                f"ledger entry {self.seq}: {error}; nothing more can be spent: use the version that wrote it"
            ) from None


@dataclass(frozen=True)
class Chain:
    """Verified entries.

    Attributes:
        rows: as stored.
        entries: as read.
        key: public key of all signatures, 32 bytes; None: nothing was signed yet.
    """

    rows: tuple[Row, ...] = ()
    entries: tuple[Entry, ...] = ()
    key: bytes | None = None

    @property
    def head(self) -> Head:
        """The newest entry; sequence 0 and a hash of zeros when there is none."""
        return Head(self.entries[-1].seq, self.entries[-1].hash) if self.entries else Head(0, GENESIS)

    def extended(self, rows: list[Row]) -> Chain:
        """The chain with more entries, which are verified.

        Raises:
            PrivacyError: an entry was changed, removed, put in or signed by another key.
        """
        if not rows:
            return self
        entries, key, head = list(self.entries), self.key, self.head
        for row in rows:
            if (row.seq, row.previous) != (head.seq + 1, head.hash) or row.hash != digest(row):
                raise changed(row.seq, "its chain does not hold")
            entry = Entry(row.seq, _body(row), row.hash, row.signature)
            key = _signed(entry, key)
            entries.append(entry)
            head = Head(row.seq, row.hash)
        return Chain((*self.rows, *rows), tuple(entries), key)

    def require(self, known: Head | None, key: bytes | None) -> Head:
        """The head, if the chain extends ``known`` and is signed by ``key``.

        Raises:
            PrivacyError: it was rolled back or replaced, or it is signed by another key or not at all.
        """
        if key is not None and key != self.key:
            signature = f"signed by key {self.key.hex()}" if self.key else "not signed"
            raise PrivacyError(
                f"the ledger is {signature}, expected key {key.hex()}: it is another node's ledger"
            )
        if known is not None and known not in (Head(0, GENESIS), self.at(known.seq)):
            raise rolled_back(known.seq)
        return self.head

    def at(self, seq: int) -> Head | None:
        """Position and hash of an entry, or None if there is no such entry."""
        return Head(seq, self.entries[seq - 1].hash) if 0 < seq <= len(self.entries) else None

    def next_row(self, body: dict[str, Any], signer: Signer | None) -> Row:
        """The row that would follow."""
        head, text = self.head, json.dumps(body, sort_keys=True, allow_nan=False)
        bare = Row(head.seq + 1, text, head.hash, "", None)
        named = bare._replace(hash=digest(bare))
        return named if signer is None else named._replace(signature=signer.sign(message(named.hash)))


def digest(row: Row) -> str:
    """SHA-256 over position, previous hash and text; 64 hexadecimal digits."""
    return hashlib.sha256(f"fedpeft-ledger-2\0{row.seq}\0{row.previous}\0{row.body}".encode()).hexdigest()


def message(hash: str) -> bytes:
    """What is signed: the hash, under a name that no other signature of this key carries."""
    return b"fedpeft-ledger-entry-2\0" + hash.encode()


def changed(seq: int, cause: str) -> PrivacyError:
    """The error of a ledger that somebody wrote into."""
    return PrivacyError(
        f"the ledger was changed at entry {seq}: {cause}; restore the newest copy before any further training"
    )


def rolled_back(seq: int) -> PrivacyError:
    """The error of a ledger that lost entries."""
    return PrivacyError(
        f"the ledger does not extend its known entry {seq}: it was rolled back or replaced; "
        "restore the newest copy before any further training"
    )


def _body(row: Row) -> dict[str, Any]:
    try:
        body = json.loads(row.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise changed(row.seq, "it is no JSON object")
    return body


def _signed(entry: Entry, key: bytes | None) -> bytes | None:
    """The key that must have signed this entry, after it was checked."""
    if entry.kind == "key":
        if key is not None:
            raise changed(entry.seq, "it names a second key")
        key = _public(entry)
    if key is None:
        if entry.signature is not None:
            raise changed(entry.seq, "it is signed, but no entry names the key")
        return None
    if entry.signature is None or not Verifier(key).verify(entry.signature, message(entry.hash)):
        raise changed(entry.seq, "its signature is missing or not by the ledger's key")
    return key


def _public(entry: Entry) -> bytes:
    try:
        key = bytes.fromhex(entry.body["public"])
    except (KeyError, TypeError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise changed(entry.seq, "it names no valid key")
    return key
