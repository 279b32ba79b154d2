"""What a node needs to answer one message: its home, key, ledger and plan, and its adapter on the base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from fedpeft.adapters import Attached, attach
from fedpeft.aggregation import FactorState
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.bases import Base, load_base
from fedpeft.errors import FederationError
from fedpeft.exchange import (
    Codec,
    Context,
    Decoded,
    DenseFp32,
    FloatVector,
    Layout,
    open_envelope,
)
from fedpeft.privacy import Ledger
from fedpeft.protocol.messages import COORDINATOR, NO_STATE, TrainTask, run_id, state_digest
from fedpeft.run_plan import RunPlan, num_classes
from fedpeft.runstore import write_atomic
from fedpeft.training.dp.engine_selection import engine_of
from fedpeft.trust import Signer, Verifier
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.process_cache import PROCESS, ProcessCache
from fedpeft_clients.rounds.node_state import load_state
from fedpeft_clients.rounds.run_home import Home

SentState = FloatVector | FactorState


@dataclass(frozen=True)
class Received:
    """The state to train from, and the newest delta that led to it, if one did."""

    state: SentState
    released: Decoded | None


@dataclass(frozen=True)
class NodeContext:
    """A node while it answers one message: its home, and what follows from it, each made when first needed.

    A repeated order or a phase of a secure sum needs no base. Nodes of one process share base and adapter and
    take turns, so a context is made for each message and never kept for another.

    Attributes:
        home: whose turn it is.
        cache: what the process keeps between messages.
    """

    home: Home
    cache: ProcessCache = PROCESS

    @cached_property
    def run(self) -> bytes:
        """16 bytes derived from the node's own config."""
        return run_id(self.home.config)

    @cached_property
    def base(self) -> Base:
        """The frozen base, which is loaded once per process.

        Raises:
            BaseModelError: it is not here, not the agreed one, or not what training takes a base for.
            ConfigError: it has no positions for the records that the run allows.
        """
        home = self.home
        return load_base(home.base, num_classes(home.base, home.labels), home.config.data.max_length)

    @cached_property
    def attached(self) -> Attached:
        """The adapter at this node's rank, first at its agreed initial values.

        Raises:
            ConfigError: the adapter does not fit the base.
        """
        return attach(self.base, self.home.config.adapter, self.home.config.run.seed, self.home.name)

    @cached_property
    def signer(self) -> Signer:
        """The node's key: from the seed of a simulation, else its own file, made when first needed."""
        if self.home.signing_seed is not None:
            return Signer.from_seed(bytes.fromhex(self.home.signing_seed))
        return Signer.load_or_create(self.home.key)

    @cached_property
    def ledger(self) -> Ledger:
        """The node's ledger with the organisation's own budget, signed by its key.

        That of an organisation is shared by runs with a yearly budget and without: its clock leaps for none.

        Raises:
            PrivacyError: it cannot be opened.
        """
        home = self.home
        return self.cache.ledger(
            home.ledger, home.budget, self.signer, strict=home.settings.ledger is not None
        )

    @cached_property
    def plan(self) -> RunPlan:
        """What follows from this node's own config.

        Raises:
            PrivacyError: the noise of the plan would swamp whatever the run could learn, or no clip bounds
                what a record does to this base.
        """
        config = self.home.config
        plan = RunPlan.from_config(config, self.attached.layout.size).checked()
        if plan.clipping is not None:
            engine_of(self.attached, config.run.engine, config.data.max_length)
        return plan

    @cached_property
    def bound(self) -> DriftBound | None:
        """How far from the agreed start this node follows; None: factors are sent, which have no bound."""
        return None if self.attached.aggregator else DriftBound.of(self.plan, self.attached.initial())

    def initial(self) -> SentState:
        """The agreed starting state."""
        return self.attached.aggregator.initial() if self.attached.aggregator else self.attached.initial()

    def layout_of(self, state: SentState) -> Layout:
        """Layout of a state."""
        return state.layout if isinstance(state, FactorState) else self.attached.layout

    def digest_of(self, state: SentState) -> bytes:
        """Digest of a state, 32 bytes."""
        values = state.values if isinstance(state, FactorState) else state
        return state_digest(self.layout_of(state), values)

    def receive(self, task: TrainTask, blob: bytes) -> Received:
        """The state to train from.

        Raises:
            PolicyError: round 1 does not begin at the agreed start, which this node computes itself, or a
                later state lies further from it than training as agreed reaches.
            FederationError: it is not the state that the coordinator announced, or this node lacks the
                state that a delta applies to.
            EnvelopeError: the broadcast does not verify or decode.
        """
        if task.round == 1 and task.state != self.digest_of(self.initial()):
            raise PolicyError("start", "round 1 begins at the agreed starting adapter and at no other")
        received = self._read(task, self._links(task, blob))
        if self.digest_of(received.state) != task.state:
            raise FederationError(f"round {task.round}: the state received is not the one announced")
        self._check_drift(task.round, received.state)
        return received

    def _check_drift(self, round: int, state: SentState) -> None:
        if self.bound is None or isinstance(state, FactorState):
            return
        if excess := self.bound.excess(round, state):
            raise PolicyError("broadcast", excess)

    def _links(self, task: TrainTask, blob: bytes) -> list[bytes]:
        """The envelopes of an order, as many as its kind needs."""
        needed = {"none": 0, "full": 1}.get(task.broadcast, max(1, task.round - task.since))
        if len(task.sizes) != needed or sum(task.sizes) != len(blob):
            raise FederationError(f"round {task.round}: the broadcast's envelopes do not fit its order")
        ends = list(accumulate(task.sizes, initial=0))
        return [blob[start:end] for start, end in pairwise(ends)]

    def _read(self, task: TrainTask, links: list[bytes]) -> Received:
        if task.broadcast == "none":
            return Received(self.initial(), None)
        if task.broadcast == "full":
            layout = self._state_layout(task.ranks)
            values = self._open(links[0], DenseFp32(), task.round, NO_STATE, layout).dense()
            aggregator = self.attached.aggregator
            return Received(aggregator.from_tensors(layout.split(values)) if aggregator else values, None)
        return self._follow(task, links)

    def _follow(self, task: TrainTask, links: list[bytes]) -> Received:
        """Apply the deltas of the rounds after the one whose state this node holds."""
        values, delta, layout = self._earlier(task.since).copy(), None, self.attached.layout
        for number, link in enumerate(links, task.since + 1):
            before = state_digest(layout, values)
            delta = self._open(link, self.plan.down.codec, number, before, layout)
            delta.add_to(values)
        return Received(values, delta)

    def _earlier(self, round: int) -> FloatVector:
        """The state of an earlier round: the agreed start, or what this node has trained from."""
        if self.attached.aggregator is not None:
            raise FederationError("factors are sent whole; a delta does not apply")
        saved = load_state(self.home.states, round)
        if saved is not None:
            return saved.values
        if round != 1:
            raise FederationError(f"this node does not hold the state of round {round}")
        return self.attached.initial()

    def _open(self, data: bytes, codec: Codec, round: int, before: bytes, layout: Layout) -> Decoded:
        context = Context(self.run, round, COORDINATOR, before, "down")
        verifier = Verifier(coordinator_key(self.home))
        return open_envelope(data, layout, codec.at(context, None), context, verifier)

    def _state_layout(self, ranks: list[int]) -> Layout:
        aggregator = self.attached.aggregator
        if aggregator is None:
            return self.attached.layout
        if len(ranks) != len(aggregator.shapes) or any(
            rank > min(shape) for rank, (_, shape) in zip(ranks, aggregator.shapes, strict=True)
        ):
            raise FederationError("the announced ranks do not fit the adapter's modules")
        return aggregator.state_layout(
            {module: rank for rank, (module, _) in zip(ranks, aggregator.shapes, strict=True)}
        )


def trust(home: Home, key: bytes) -> None:
    """Accept a coordinator: the one in ``node.json``, or the first that was ever seen.

    Raises:
        FederationError: another coordinator speaks.
    """
    pinned = home.path / "coordinator.pub"
    if home.coordinator is None and not pinned.exists():
        write_atomic(pinned, key)
    if coordinator_key(home) != key:
        raise FederationError("this is not the coordinator that this node trusts")


def coordinator_key(home: Home) -> bytes:
    """The trusted coordinator's public key.

    Raises:
        FederationError: no coordinator has introduced itself yet.
    """
    if home.coordinator is not None:
        return bytes.fromhex(home.coordinator)
    try:
        return (home.path / "coordinator.pub").read_bytes()
    except FileNotFoundError:
        raise FederationError("no coordinator has introduced itself to this node yet") from None
