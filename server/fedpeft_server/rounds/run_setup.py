"""What the coordinator computes before it sends anything: base, starting state, keys and plans."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedpeft.adapters import attach
from fedpeft.adapters.coverage import Coverage
from fedpeft.aggregation.central_dp import CentralNoise
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.aggregation.global_state import GlobalState, digest, initial_state
from fedpeft.aggregation.robust import rule_of
from fedpeft.bases import load_base
from fedpeft.config import Config
from fedpeft.errors import RunError
from fedpeft.exchange import Context, DenseFp32, ExchangePlan
from fedpeft.protocol.messages import COORDINATOR, run_id, state_digest
from fedpeft.run_plan import RunPlan, num_classes
from fedpeft.runstore import RunStore
from fedpeft.trust import Signer
from fedpeft_server.rounds.broadcast_cache import Broadcasts
from fedpeft_server.rounds.roster import Agreed

KEY_FILE = "coordinator.key"
WHOLE = ExchangePlan((), DenseFp32())
"""How a state travels when a node holds nothing that a delta could change."""


@dataclass(frozen=True)
class Setup:
    """Everything that stays the same during a run.

    Attributes:
        run: the run directory.
        config: its resolved config.
        run_id: 16 bytes.
        signer: the coordinator's key.
        agreed: what nodes must have computed too.
        initial: the state before round 1.
        broadcasts: those of earlier rounds.
        plan: what follows from the config.
        coverage: how much of the base is adapted; None: of a state that is no adapter's.
    """

    run: Path
    config: Config
    run_id: bytes
    signer: Signer
    agreed: Agreed
    initial: GlobalState
    broadcasts: Broadcasts
    plan: RunPlan
    coverage: Coverage | None = None

    def down_context(self, round: int, before: bytes) -> Context:
        """The context, known to both ends, of a broadcast that applies to the state of digest ``before``."""
        return Context(self.run_id, round, COORDINATOR, before, "down")

    @property
    def asks_everybody(self) -> bool:
        """Whether a round that is repeated waits for no node in particular."""
        federation = self.config.federation
        return federation.selection == "seeded" and federation.participation == 1

    @property
    def compares(self) -> bool:
        """Whether norms of single updates may be compared: not in a secure sum, not under central noise."""
        return self.plan.central is None and not self.config.exchange.secure.enabled


def prepare(run: Path, config: Config, signer: Signer | None = None) -> Setup:
    """Load the base, attach the adapter once and derive what must agree.

    Args:
        run: the run directory.
        config: its resolved config.
        signer: the coordinator's key; default: one that belongs to the run.

    Raises:
        FedPeftError: the base, the adapter or the exchange cannot be made as configured.
    """
    base = load_base(config.base, _num_labels(run, config), config.data.max_length)
    attached = attach(base, config.adapter, config.run.seed)
    plan = RunPlan.from_config(config, attached.layout.size).checked()
    noise = CentralNoise.of(plan.central, config.run.seed) if plan.central else None
    mean = noise or rule_of(config)
    values = attached.initial()
    bound = None if attached.aggregator else DriftBound.of(plan, values)
    state = initial_state(config, attached.aggregator, attached.layout, values, mean, bound)
    start = digest(state) if attached.aggregator else state_digest(attached.layout, values)
    signer, identity = signer or Signer.load_or_create(run / KEY_FILE), run_id(config)
    agreed = Agreed(
        run=identity,
        base=base.sha256,
        layout=lambda name: state.node_layout(name).digest,
        state=start,
        key=signer.public,
    )
    broadcasts = Broadcasts(run / "broadcasts", config.exchange.cache_rounds)
    return Setup(run, config, identity, signer, agreed, state, broadcasts, plan, attached.spec.coverage)


def _num_labels(run: Path, config: Config) -> int | None:
    """Number of classes of a sequence-classification run, from the run's public list of labels."""
    if config.base.task != "sequence-classification":
        return None
    try:
        return num_classes(config.base, json.loads(RunStore(run).labels.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{run} has no file with the agreed classes; prepare the run again") from None
