"""What both ends of a message know without sending it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from fedpeft.errors import ExchangeError

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Context:
    """What both ends know already; authenticated, never transmitted.

    Attributes:
        run: identifier of the run, 16 bytes.
        round: 1-based round number.
        sender: name of the signing node, or of the coordinator.
        base_state: digest of the state that the update is relative to, 32 bytes.
        direction: ``up`` from node to coordinator, ``down`` for the broadcast.

    Raises:
        ExchangeError: a field has the wrong length or range.
    """

    run: bytes
    round: int
    sender: str
    base_state: bytes
    direction: Direction

    def __post_init__(self) -> None:
        if len(self.run) != 16 or len(self.base_state) != 32:
            raise ExchangeError(
                "a context needs 16 bytes of run and 32 of base state, "
                f"got {len(self.run)} and {len(self.base_state)}"
            )
        if not 0 <= self.round < 1 << 63:
            raise ExchangeError(f"round {self.round} is out of range")
        if self.direction not in ("up", "down"):
            raise ExchangeError(f"direction is {self.direction!r}; it must be 'up' or 'down'")

    def shared(self) -> bytes:
        """Injective bytes of what the messages of all nodes in a round have in common."""
        return struct.pack("<16sQB", self.run, self.round, self.direction == "up")

    def encode(self) -> bytes:
        """Injective bytes of all fields."""
        sender = self.sender.encode()
        head = struct.pack("<16sQ32sB", self.run, self.round, self.base_state, self.direction == "up")
        return head + struct.pack("<I", len(sender)) + sender
