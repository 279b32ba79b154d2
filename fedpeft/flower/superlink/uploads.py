"""Replies on their way in: each node's own, kept apart until whole, within a quota."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpeft.flower.superlink.message_parts import LARGEST_PART, BadPart, Place, check_part, most_parts


@dataclass(frozen=True)
class Quota:
    """What one node may have lying at a SuperLink at any time, replies under way and uncollected together.

    Attributes:
        bytes: of all its parts.
        replies: how many messages.
    """

    bytes: int = 2**30
    replies: int = 8

    @property
    def parts(self) -> int:
        """The most parts that one reply may have."""
        return most_parts(self.bytes)


DEFAULT_QUOTA = Quota()


class OverQuota(ValueError):
    """A node has more lying here than it may; the text is plain."""


@dataclass
class Upload:
    """A reply that a node has announced.

    Attributes:
        node, order: who replies to which message.
        header: Flower's message without content, as it was found good.
        tree: the parts as announced.
        places: the same by name.
        folder: where its parts lie until it is whole.
    """

    node: int
    order: str
    header: Any
    tree: Any
    places: dict[str, Place]
    folder: Path
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    written: set[str] = field(default_factory=set[str])

    @property
    def bytes(self) -> int:
        """Bytes that lie here."""
        return sum(self.sizes.values())

    def part(self, name: str) -> bytes:
        """A part that is here."""
        return (self.folder / name).read_bytes()


@dataclass(frozen=True)
class Shelf:
    """What Flower's store says of messages.

    Attributes:
        asks: whether a message still waits for its reply, by its name.
        keeps: whether a reply has not been collected yet, by its name.
    """

    asks: Callable[[str], bool]
    keeps: Callable[[str], bool]


@dataclass(frozen=True)
class _Uncollected:
    """A reply that Flower has and the coordinator has not collected yet."""

    root: str
    bytes: int


class Uploads:
    """All replies under way, and what of each node waits to be collected.

    A reply is one folder of files until it is whole, so an unfinished or false one never reaches Flower's
    store, which all nodes and the coordinator share. A restart forgets what is under way: nodes send again.
    """

    def __init__(self, folder: Path, quota: Quota, shelf: Shelf) -> None:
        """Begin with nothing; the folder is for this alone and is emptied."""
        shutil.rmtree(folder, ignore_errors=True)
        self._folder, self._shelf, self.quota = folder, shelf, quota
        self._open: dict[str, Upload] = {}
        self._uncollected: dict[int, dict[str, _Uncollected]] = {}
        self._lock = threading.RLock()

    def begin(self, upload: Upload) -> str:
        """Expect the parts of a reply, in place of one to the same message; the session's name.

        Raises:
            OverQuota: the node has too many replies here.
        """
        with self._lock:
            self._tidy(upload.node, upload.order)
            if len(self._of(upload.node)) + len(self._uncollected.get(upload.node, {})) >= self.quota.replies:
                raise OverQuota(f"this node has {self.quota.replies} replies here that nobody has read")
            session = secrets.token_hex(16)
            upload.folder = self._folder / session
            upload.folder.mkdir(parents=True)
            self._open[session] = upload
            return session

    def put(self, node: int, session: str, name: str, content: bytes) -> Upload | None:
        """Take a part of an announced reply; the reply if that was the last, to be handed on by the caller.

        Raises:
            KeyError: the node announced no such part in this session.
            BadPart: it is not what was announced.
            OverQuota: the node has too much here.
        """
        upload = self._open[session]
        if upload.node != node:
            raise KeyError(session)
        place = upload.places[name]
        if len(content) > LARGEST_PART:
            raise BadPart(f"a part of a message has {len(content)} bytes, allowed are {LARGEST_PART}")
        check_part(name, place, content)
        if not self._reserved(session, upload, name, len(content)):
            return None
        try:
            (upload.folder / name).write_bytes(content)
        except OSError:
            with self._lock:
                upload.sizes.pop(name, None)  # it is not here, and may be sent again
            raise
        with self._lock:
            upload.written.add(name)
            return self._open.pop(session, None) if len(upload.written) == len(upload.places) else None

    def end(self, upload: Upload, complete: bool) -> None:
        """A whole reply has been handed on, or could not be."""
        if complete:
            with self._lock:
                mine = self._uncollected.setdefault(upload.node, {})
                mine[upload.order] = _Uncollected(upload.tree.object_id, upload.bytes)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def answered(self, node: int, order: str) -> bool:
        """Whether a whole reply of the node to this message has been handed on."""
        with self._lock:
            return order in self._uncollected.get(node, {})

    def _reserved(self, session: str, upload: Upload, name: str, size: int) -> bool:
        """Count a part before it is written; False if it is here already."""
        with self._lock:
            if session not in self._open or name in upload.sizes:
                return False
            if self._bytes(upload.node) + size > self.quota.bytes:
                self._tidy(upload.node)
            if self._bytes(upload.node) + size > self.quota.bytes:
                self._drop(session)
                raise OverQuota(f"a node may have {self.quota.bytes} bytes here, and this one has more")
            upload.sizes[name] = size
            return True

    def _of(self, node: int) -> list[tuple[str, Upload]]:
        return [(session, upload) for session, upload in self._open.items() if upload.node == node]

    def _bytes(self, node: int) -> int:
        waiting = self._uncollected.get(node, {}).values()
        return sum(reply.bytes for _, reply in self._of(node)) + sum(reply.bytes for reply in waiting)

    def _tidy(self, node: int, again: str = "") -> None:
        """Forget replies that were collected and drop those that nobody waits for or that begin again."""
        left = {
            order: reply
            for order, reply in self._uncollected.get(node, {}).items()
            if self._shelf.keeps(reply.root)
        }
        self._uncollected[node] = left
        for session, upload in self._of(node):
            if upload.order == again or (again and not self._shelf.asks(upload.order)):
                self._drop(session)

    def _drop(self, session: str) -> None:
        shutil.rmtree(self._open.pop(session).folder, ignore_errors=True)
