"""A signed log: one JSON line per entry, chained by hashes, signed, on the disk before its event.

A node keeps one of all that left it (its outbox), a coordinator one of what its operators did.

What `verify` finds: any changed, removed, added or reordered entry, and a log that is shorter than its head
says. What it cannot see: a log that was put back as a whole, with its head, to an earlier day. Compare the
head with one that was noted elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedpeft.errors import RunError
from fedpeft.runstore import write_json
from fedpeft.runstore.files import sync_folder
from fedpeft.trust.keys import Signer, Verifier

FORMAT = 1
GENESIS = "0" * 64
SEALS = ("hash", "signature")
_BLOCK = 1 << 16

Entry = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """Number and hash of the newest entry; 0 and zeros for an empty log."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True)
class LogFormat:
    """How the entries of one kind of log are sealed; no entry of one kind is valid in a log of another.

    Attributes:
        kind: ``outbox``, ``operator``, ...; part of everything that is hashed or signed.
    """

    kind: str

    def sealed(self, facts: Entry, signer: Signer) -> Entry:
        """An entry with its hash and signature."""
        digest = self._digest(facts)
        return {**facts, "hash": digest, "signature": signer.sign(self._message(digest)).hex()}

    def signed_head(self, head: Head, signer: Signer) -> dict[str, Any]:
        """A head as it is written down."""
        return {"seq": head.seq, "hash": head.hash, "signature": signer.sign(self._head_message(head)).hex()}

    def checked_head(self, facts: Any, key: bytes) -> Head:
        """The inverse of `signed_head`.

        Raises:
            ValueError: it is none, or not signed by this key.
        """
        try:
            head = Head(int(facts["seq"]), str(facts["hash"]))
        except (KeyError, TypeError):
            raise ValueError("no head") from None
        if not _signed(facts, self._head_message(head), key):
            raise ValueError("not signed by this key")
        return head

    def verify(self, lines: Iterable[bytes], key: bytes, head: Head | None, closed: bool = True) -> Head:
        """Check entries from the first to the last, and return the head that they lead to.

        Args:
            lines: as `line_of` wrote them.
            key: public key of the log's owner, 32 bytes.
            head: what was written down as the newest entry; the log may be one ahead of it after a crash.
            closed: whether there is such a head to hold against.

        Raises:
            RunError: names the first entry that does not hold.
        """
        reached, before = Head(), Head()
        for number, line in enumerate(lines, 1):
            entry = self.entry(line, number)
            if (entry.get("seq"), entry.get("previous")) != (number, reached.hash):
                raise self._changed(number, "it does not follow the one before")
            self.check(entry, key)
            before, reached = reached, Head(number, entry["hash"])
        if closed and (head or Head()) not in (before, reached):
            raise RunError(
                f"the {self.kind} log ends at entry {reached.seq}, but its head is {head}: it was cut"
            )
        return reached

    def verify_export(self, data: bytes, key: bytes | None) -> tuple[dict[str, Any], Head]:
        """Check an export; its header and its head.

        Args:
            data: the file.
            key: public key of the log's owner, from another source; None: believe the file's.

        Raises:
            RunError: it is none, is by another key, or was changed, reordered or cut.
        """
        first, *lines = lines_of(data) or [b""]
        try:
            header = json.loads(first)
            named, version = bytes.fromhex(header["key"]), header[f"fedpeft_{self.kind}"]
            bare = {name: value for name, value in header.items() if name != "signature"}
            honest = first == line_of(header) and _signed(header, self.export_message(bare), key or named)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"this is no export of an {self.kind} log, or its header was changed") from None
        if version != FORMAT or not honest or key not in (None, named):
            raise RunError("the header of this export was changed, or is of another version or key")
        reached = self.verify(lines, named, None, closed=False)
        if str(reached) != header["head"]:
            raise RunError(f"the entries of this export end at {reached}, not at its head {header['head']}")
        return header, reached

    def entry(self, line: bytes, number: int) -> Entry:
        """An entry whose line is in the one valid form.

        Raises:
            RunError: it is not.
        """
        try:
            entry = json.loads(line)
            if line == line_of(entry) and isinstance(entry["hash"], str):
                return entry
        except (ValueError, KeyError, TypeError):
            pass
        raise self._changed(number, "it is not as it was written")

    def check(self, entry: Entry, key: bytes) -> None:
        """Hold an entry against its hash and signature.

        Raises:
            RunError: one of them is not its own.
        """
        bare = {name: value for name, value in entry.items() if name not in SEALS}
        if entry["hash"] != self._digest(bare) or not _signed(entry, self._message(entry["hash"]), key):
            raise self._changed(entry.get("seq"), "its hash or signature")

    def export_message(self, header: Mapping[str, Any]) -> bytes:
        """What is signed in the header of an export."""
        return f"fedpeft-{self.kind}-export-1\0".encode() + _canonical(header)

    def _changed(self, number: Any, how: str) -> RunError:
        return RunError(f"the {self.kind} log was changed at entry {number}: {how}")

    def _digest(self, facts: Entry) -> str:
        return hashlib.sha256(f"fedpeft-{self.kind}-1\0".encode() + _canonical(facts)).hexdigest()

    def _message(self, digest: str) -> bytes:
        return f"fedpeft-{self.kind}-entry-1\0{digest}".encode()

    def _head_message(self, head: Head) -> bytes:
        return f"fedpeft-{self.kind}-head-1\0{head}".encode()


@dataclass(frozen=True)
class SignedLog:
    """A log in its owner's folder; several processes may share it.

    Attributes:
        path: the JSON lines; the head lies beside them.
        signer: the owner's key.
        format: what kind of log it is.
    """

    path: Path
    signer: Signer
    format: LogFormat

    @property
    def head_file(self) -> Path:
        """Where the signed head lies."""
        return self.path.with_suffix(".head")

    def append(self, facts: Mapping[str, Any]) -> Entry:
        """Write an entry; when this returns, it is on the disk.

        A last line that a crash has torn is removed first: its event never happened.

        Raises:
            RunError: the log is shorter than its head says, or its end was changed; nothing may happen then.
            OSError: the disk is full or cannot be written.
        """
        with self._opened() as (file, last):
            entry = self.format.sealed({**facts, "seq": last.seq + 1, "previous": last.hash}, self.signer)
            file.write(line_of(entry))
            file.flush()
            os.fsync(file.fileno())
            if not last.seq:
                sync_folder(self.path.parent)
            head = Head(entry["seq"], entry["hash"])
            write_json(self.head_file, self.format.signed_head(head, self.signer))
        return entry

    def require_ready(self) -> None:
        """Find out before any work, and before privacy is spent on it, that its result could leave.

        Raises:
            RunError: the log was cut or changed.
            OSError: the disk is full or cannot be written.
        """
        with self._opened():
            pass

    def set_aside(self) -> None:
        """Keep a log that was cut or changed under other names; the next entry begins a new one."""
        for file in (self.path, self.head_file):
            if file.exists():
                file.rename(file.with_name(f"{file.name}.{time.time_ns()}.old"))
        sync_folder(self.path.parent)

    @contextmanager
    def _opened(self) -> Generator[tuple[IO[bytes], Head]]:
        """The log, locked and healed, and its end.

        The head is written each time: a crash or a full disk may have held it back, and a log is never two
        entries ahead of it.
        """
        with self.path.open("a+b") as file:
            os.chmod(file.fileno(), 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            last = self._require_end(_heal(file))
            if last.seq:
                write_json(self.head_file, self.format.signed_head(last, self.signer))
            yield file, last

    def read(self) -> list[bytes]:
        """The lines; one that a crash has torn at the end is left out: its event never happened."""
        lines = lines_of(self.path.read_bytes()) if self.path.exists() else []
        return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines

    def verified(self) -> tuple[list[bytes], Head]:
        """The lines, all of which hold, and the head that they lead to.

        Raises:
            RunError: names the first entry that does not hold.
        """
        lines = self.read()
        return lines, self.format.verify(lines, self.signer.public, self.head())

    def head(self) -> Head | None:
        """The newest head that was written down; None before the first.

        Raises:
            RunError: the head file was changed.
        """
        if not self.head_file.exists():
            return None
        try:
            return self.format.checked_head(json.loads(self.head_file.read_bytes()), self.signer.public)
        except ValueError:
            raise RunError(f"{self.head_file} was changed; restore the newest copy") from None

    def _require_end(self, line: bytes) -> Head:
        """The head of the lines, which is the one written down, or one ahead of it after a crash."""
        before, written = Head(), self.head() or Head()
        if line:
            entry = self.format.entry(line, written.seq + 1)
            self.format.check(entry, self.signer.public)
            before = Head(entry["seq"], entry["hash"])
            ahead = before.seq == written.seq + 1 and entry["previous"] == written.hash
            if before == written or ahead:
                return before
        elif written == before:
            return before
        raise RunError(
            f"{self.path} does not end where its head says ({written}): it was cut or changed; "
            "nothing leaves until the newest copy is restored"
        )

    def export(self, name: str) -> bytes:
        """The whole log as one file that `LogFormat.verify_export` checks on any machine.

        Raises:
            RunError: the log does not hold.
        """
        lines, head = self.verified()
        kind = f"fedpeft_{self.format.kind}"
        facts = {kind: FORMAT, "name": name, "key": self.signer.public.hex(), "head": str(head)}
        signature = self.signer.sign(self.format.export_message(facts)).hex()
        return b"".join([line_of({**facts, "signature": signature}), *lines])


def line_of(entry: Entry) -> bytes:
    """The one valid form of an entry."""
    return _canonical(entry) + b"\n"


def entries_of(lines: Iterable[bytes]) -> list[Entry]:
    """The entries of lines that hold."""
    return [json.loads(line) for line in lines]


def _heal(file: IO[bytes]) -> bytes:
    """Cut a torn last line off; the last whole line, or nothing."""
    size = file.seek(0, os.SEEK_END)
    tail, start = b"", size
    while start and tail.count(b"\n") < 2:
        start = max(0, start - _BLOCK)
        file.seek(start)
        tail = file.read(size - start)
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        file.truncate(start + len(whole))
        os.fsync(file.fileno())
    file.seek(0, os.SEEK_END)
    return whole[whole.rfind(b"\n", 0, -1) + 1 :]


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a file, each with its end; the last may lack it."""
    *whole, rest = data.split(b"\n")
    return [*(line + b"\n" for line in whole), *([rest] if rest else [])]


def _signed(facts: Mapping[str, Any], message: bytes, key: bytes) -> bool:
    """Whether the facts name a signature of a message, in its one valid form."""
    try:
        signature = bytes.fromhex(facts["signature"])
    except (KeyError, ValueError, TypeError):
        return False
    return signature.hex() == facts["signature"] and Verifier(key).verify(signature, message)


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
