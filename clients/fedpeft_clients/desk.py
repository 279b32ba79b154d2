"""A node's place of work for one message: its home, the shared base, and its adapter on it."""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.adapters import Attached, FactorState, attach
from fedpeft.bases import Base, load_base
from fedpeft.errors import EnvelopeError, FederationError
from fedpeft.exchange import Context, ExchangePlan, FloatVector, Layout, open_envelope, plan_from_config
from fedpeft.privacy import PrivacyPlan
from fedpeft.privacy import plan_from_config as privacy_plan
from fedpeft.protocol import COORDINATOR, NO_STATE, TrainTask, run_id, state_digest
from fedpeft.runstore import write_atomic
from fedpeft.trust import Signer, Verifier
from fedpeft_clients.home import Home
from fedpeft_clients.state import NodeState

Held = FloatVector | FactorState


@dataclass(frozen=True)
class Desk:
    """Home, base and adapter; nodes of one process share base and adapter and take turns.

    Attributes:
        home: whose turn it is.
        base: the frozen base.
        attached: the adapter at this node's rank, at its agreed initial values.
        run: 16 bytes derived from the node's own config.
    """

    home: Home
    base: Base
    attached: Attached
    run: bytes

    @classmethod
    def of(cls, home: Home) -> Desk:
        """Load what is not yet there; the base is loaded once per process.

        Raises:
            FedPeftError: the base or the adapter cannot be made as agreed.
        """
        base = load_base(home.config.base, len(home.classes) if home.classes else None)
        attached = attach(base, home.config.adapter, home.config.run.seed, home.name)
        return cls(home, base, attached, run_id(home.config))

    def initial(self) -> Held:
        """The agreed starting state."""
        return self.attached.law.initial() if self.attached.law else self.attached.initial()

    def layout_of(self, held: Held) -> Layout:
        """Layout of a state."""
        return held.layout if isinstance(held, FactorState) else self.attached.layout

    def digest_of(self, held: Held) -> bytes:
        """Digest of a state, 32 bytes."""
        values = held.values if isinstance(held, FactorState) else held
        return state_digest(self.layout_of(held), values)

    def receive(self, task: TrainTask, blob: bytes, before: NodeState | None) -> Held:
        """The state to train from; ``before`` is what this node holds of the round before.

        Raises:
            FederationError: it is not the state that the coordinator announced, or this node lacks the
                state that a delta applies to.
            EnvelopeError: the broadcast does not verify or decode.
        """
        held = self._read(task, blob, before)
        if self.digest_of(held) != task.state:
            raise FederationError(f"round {task.round}: the state received is not the one announced")
        return held

    def _read(self, task: TrainTask, blob: bytes, before: NodeState | None) -> Held:
        if task.broadcast == "none":
            return self.initial()
        codec = "dense-fp32" if task.broadcast == "full" else self.home.config.exchange.down.codec
        layout = self._state_layout(task.ranks)
        context = Context(self.run, task.round, COORDINATOR, task.before, "down")
        values = open_envelope(blob, layout, codec, context, Verifier(coordinator_key(self.home)))
        if task.broadcast == "full":
            return self._whole(values, layout, task.before)
        if before is None or before.answer.digest != task.before or before.values.shape != values.shape:
            raise FederationError(
                f"round {task.round}: this node does not hold the state of the round before"
            )
        return before.values + values

    def _whole(self, values: FloatVector, layout: Layout, before: bytes) -> Held:
        if before != NO_STATE:
            raise EnvelopeError("a whole state applies to no state before it")
        law = self.attached.law
        return law.from_tensors(layout.split(values)) if law else values

    def _state_layout(self, ranks: list[int]) -> Layout:
        law = self.attached.law
        if law is None:
            return self.attached.layout
        if len(ranks) != len(law.shapes) or any(
            rank > min(shape) for rank, (_, shape) in zip(ranks, law.shapes, strict=True)
        ):
            raise FederationError("the announced ranks do not fit the adapter's modules")
        return law.state_layout({module: rank for rank, (module, _) in zip(ranks, law.shapes, strict=True)})


@dataclass(frozen=True)
class Plans:
    """What a config says about leaving the node; solved once per process."""

    up: ExchangePlan
    privacy: PrivacyPlan | None


_plans: dict[bytes, Plans] = {}


def plans(home: Home) -> Plans:
    """The plans of a node's own config, kept per process: calibrating noise takes a while."""
    key = run_id(home.config)
    if key not in _plans:
        privacy = privacy_plan(home.config)
        _plans[key] = Plans(plan_from_config(home.config.exchange.up, privacy is not None), privacy)
    return _plans[key]


def signer_of(home: Home) -> Signer:
    """The node's key: from the seed of a simulation, else its own file, made when first needed."""
    if home.signing_seed is not None:
        return Signer.from_seed(bytes.fromhex(home.signing_seed))
    return Signer.load_or_create(home.path / "signing.key")


def trust(home: Home, key: bytes) -> None:
    """Accept a coordinator: the one in ``node.json``, or the first that was ever seen.

    Raises:
        FederationError: another coordinator speaks.
    """
    pinned = home.path / "coordinator.pub"
    if home.coordinator is None and not pinned.exists():
        write_atomic(pinned, key)
    if coordinator_key(home) != key:
        raise FederationError("another coordinator speaks than the one this node trusts")


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
