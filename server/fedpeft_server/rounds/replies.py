"""The updates of a round as they come in: each judged alone, none able to end the round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message

from fedpeft.aggregation import Contribution
from fedpeft.aggregation.global_state import GlobalState, digest
from fedpeft.aggregation.robust import bounds, norm_of, too_long
from fedpeft.errors import FederationError, FedPeftError
from fedpeft.exchange import (
    OVERHEAD_BYTES,
    Codec,
    Context,
    Decoded,
    Layout,
    codec_of,
    entropy_bits,
    open_envelope,
    open_payload,
)
from fedpeft.privacy import Head
from fedpeft.protocol.encoding import unpack
from fedpeft.protocol.messages import TrainReply
from fedpeft.runstore import write_atomic
from fedpeft.trust import Verifier
from fedpeft_server.rounds.ask_nodes import cause_of, is_answer
from fedpeft_server.rounds.roster import Member
from fedpeft_server.rounds.run_setup import Setup
from fedpeft_server.rounds.secure_aggregation import SecureSum

_T = TypeVar("_T")


@dataclass(frozen=True)
class _CheckedReply:
    """A reply whose facts are sound; what its envelope holds is not known yet."""

    reply: TrainReply
    blob: bytes
    layout: Layout
    context: Context
    codec: Codec


@dataclass
class Inbox:
    """Judges the replies of a round one by one; whatever is wrong with one stays with that one.

    A reply is valid if its facts are in range and for this round, its node's ledger went on, its envelope is
    no longer than the layout allows, is signed by the node for this very round, run, state and layout,
    decodes to finite values and, where single norms may be compared, is not `too_long`.

    Attributes:
        released: the newest broadcast delta, for nodes that were sent it.
        heads: newest ledger entries seen so far.
        secure: the round's secure sum, if there is one.
        accepted: the valid replies by node.
        refused: causes by node of all others.
        answered: nodes that replied themselves and are at work, whatever they said.
    """

    setup: Setup
    state: GlobalState
    round: int
    released: Callable[[str], Decoded | None]
    heads: Mapping[str, Head]
    secure: SecureSum | None = None
    accepted: dict[str, TrainReply] = field(default_factory=dict)
    codecs: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    nonzero: int = 0
    values: int = 0
    entropy: float = 0.0
    _sizes: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        """Bytes of all envelopes that came, those of refused replies too."""
        return sum(self._sizes.values())

    def updates(
        self, members: Iterable[Member], replies: Mapping[str, Message | None]
    ) -> Iterator[Contribution]:
        """The valid updates in the order of the members, decoded one at a time.

        Each counts 1, whatever its node says. Where norms are compared, an update is decoded twice, first
        for its norm alone: memory is one decoded update, however many there are.
        """
        asked = list(members)
        if self.setup.compares and bounds(len(asked), self.setup.config.federation):
            norms = {m.name: norm for m in asked if (norm := self._norm(m, replies[m.name])) is not None}
            self.refused |= too_long(norms, self.setup.config.federation)
            asked = [member for member in asked if member.name not in self.refused]
        for member in asked:
            values = self._checked(member, replies[member.name], self._take)
            if values is not None:
                yield member.name, 1.0, values

    def _norm(self, member: Member, message: Message | None) -> float | None:
        return self._checked(member, message, lambda known, checked: norm_of(_decoded(known, checked)))

    def _checked(
        self, member: Member, message: Message | None, work: Callable[[Member, _CheckedReply], _T]
    ) -> _T | None:
        """What is made of a sound letter; None, with the cause in ``refused``, if anything is wrong.

        Raises:
            OSError: the coordinator's own disk fails, which is no node's fault.
        """
        if message is None:
            self.refused[member.name] = "no reply before the round closed"
            return None
        if is_answer(message):
            self.answered.add(member.name)
        try:
            return work(member, self._read(member, message))
        except OSError:
            raise
        except FedPeftError as error:
            self.refused[member.name] = str(error)
        except Exception as error:
            self.refused[member.name] = f"unreadable reply ({type(error).__name__})"
        return None

    def _read(self, member: Member, message: Message) -> _CheckedReply:
        if message.has_error():
            raise FederationError(cause_of(message))
        layout = self.state.node_layout(member.name)
        reply, blob = unpack(message, TrainReply, self.limit(member.name))
        self._sizes[member.name] = len(blob)
        if message.metadata.group_id != str(self.round):
            raise FederationError("its reply belongs to another round's messages")
        self._check(reply, member.name)
        context = Context(self.setup.run_id, self.round, member.name, digest(self.state), "up")
        codec = self.setup.plan.up.codec.at(context, self.released(member.name))
        return _CheckedReply(reply, blob, layout, context, codec)

    def _take(self, member: Member, checked: _CheckedReply) -> Decoded | None:
        """Accept an update and keep its envelope; its values, or None where they are masked."""
        values = self._opened(member, checked) if self.secure is None else self._masked(member, checked)
        folder = self.setup.run / "updates" / f"r{self.round:02d}"
        write_atomic(folder / f"{member.name}.fpd", checked.blob)
        self.accepted[member.name] = checked.reply
        return values

    def terms(self, name: str) -> tuple[int, bytes]:
        """Attempt of the round's secure sum, 0 without one, and what was dealt to a node for it."""
        return (self.secure.task.attempt, self.secure.shares_for(name)) if self.secure else (0, b"")

    def limit(self, name: str) -> int:
        """The most bytes that the envelope of a node may have."""
        if self.secure is not None:
            return OVERHEAD_BYTES + self.secure.payload_bytes
        return OVERHEAD_BYTES + self.setup.plan.up.codec.max_bytes(self.state.node_layout(name))

    def _opened(self, member: Member, checked: _CheckedReply) -> Decoded:
        values = _decoded(member, checked)
        self._measure(values)
        self.codecs[member.name] = codec_of(checked.blob, checked.codec)
        return values

    def _masked(self, member: Member, checked: _CheckedReply) -> None:
        """Add a masked update to the secure sum; by itself it has no values."""
        assert self.secure is not None
        size, verifier = self.secure.payload_bytes, Verifier(member.key)
        payload = open_payload(checked.blob, size, checked.layout, checked.context, verifier)
        self.secure.add(member.name, payload)
        self.values += checked.layout.size

    def _check(self, reply: TrainReply, name: str) -> None:
        if reply.round != self.round:
            raise FederationError(f"its reply is for round {reply.round}")
        if not 1 <= reply.steps <= self.setup.config.federation.local_steps:
            raise FederationError(f"it reports {reply.steps} local steps")
        privacy = self.setup.plan.privacy
        if len(reply.loss) != (privacy is not None and privacy.loss is not None):
            raise FederationError(
                f"it sends {len(reply.loss)} losses, which is not what the privacy plan says"
            )
        seen = self.heads.get(name)
        if len(reply.ledger) != 32 or reply.ledger_entry <= (seen.seq if seen else 0):
            raise FederationError("its privacy ledger went back: it was rolled back or replaced")

    def _measure(self, values: Decoded) -> None:
        self.values += values.layout.size
        self.nonzero += values.nonzero
        if self.setup.plan.up.codec.near_entropy:
            self.entropy += entropy_bits(values, values.layout)


def _decoded(member: Member, checked: _CheckedReply) -> Decoded:
    return open_envelope(checked.blob, checked.layout, checked.codec, checked.context, Verifier(member.key))


def next_heads(heads: Mapping[str, Head], accepted: Mapping[str, TrainReply]) -> dict[str, Head]:
    """The newest ledger entry seen of each node: its copy, against which the node checks its own ledger."""
    seen = {name: Head(reply.ledger_entry, reply.ledger.hex()) for name, reply in accepted.items()}
    return {**heads, **seen}
