"""What the coordinator computes before it speaks to anybody: base, starting state, keys and plans."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedpeft.adapters import attach
from fedpeft.aggregation.central_dp import CentralNoise
from fedpeft.aggregation.global_state import GlobalState, digest, initial_state
from fedpeft.aggregation.robust import RobustMean
from fedpeft.bases import load_base
from fedpeft.config import Config
from fedpeft.errors import RunError
from fedpeft.exchange import (
    Codec,
    Context,
    DenseFp32,
    ExchangePlan,
    Layout,
    noisy_values,
    plan_from_config,
    up_codec,
)
from fedpeft.privacy import PrivacyPlan
from fedpeft.privacy import plan_from_config as privacy_plan
from fedpeft.privacy.noise_to_signal import check_signal
from fedpeft.protocol.messages import COORDINATOR, run_id, state_digest
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
        up: codec of the updates.
        down: plan of the broadcast, without a residual: the exact state is the residual.
        broadcasts: those of earlier rounds.
        privacy: the run's plan, whoever adds the noise; None: no DP.
    """

    run: Path
    config: Config
    run_id: bytes
    signer: Signer
    agreed: Agreed
    initial: GlobalState
    up: Codec
    down: ExchangePlan
    broadcasts: Broadcasts
    privacy: PrivacyPlan | None = None

    @property
    def central(self) -> PrivacyPlan | None:
        """The plan of the noise that this coordinator adds, if it adds some."""
        return self.privacy if self.privacy is not None and self.privacy.trust == "central" else None

    def down_context(self, round: int, before: bytes) -> Context:
        """What both ends know of a broadcast that applies to the state of digest ``before``."""
        return Context(self.run_id, round, COORDINATOR, before, "down")

    @property
    def compares(self) -> bool:
        """Whether norms of single updates may be compared: not in a secure sum, not under central noise."""
        return self.central is None and not self.config.exchange.secure.enabled

    @property
    def quorum(self) -> int:
        """Valid replies that a round needs: as configured, or a majority of those expected to be asked."""
        federation = self.config.federation
        asked = max(1, round(federation.participation * federation.nodes))
        return min(federation.quorum or asked // 2 + 1, federation.nodes)


def prepare(run: Path, config: Config, signer: Signer | None = None) -> Setup:
    """Load the base, attach the adapter once and derive what must agree.

    Args:
        run: the run directory.
        config: its resolved config.
        signer: the coordinator's key; default: one that belongs to the run.

    Raises:
        FedPeftError: the base, the adapter or the exchange cannot be made as configured.
    """
    down = plan_from_config(config.exchange.down.model_copy(update={"error_feedback": False}), private=False)
    base = load_base(config.base, _num_labels(run, config))
    attached = attach(base, config.adapter, config.run.seed)
    privacy = _privacy(config, attached.layout)
    noise = CentralNoise.of(privacy, config.run.seed) if privacy and privacy.trust == "central" else None
    mean = noise or RobustMean.of(config)
    state = initial_state(config, attached.law, attached.layout, attached.initial(), mean)
    start = digest(state) if attached.law else state_digest(attached.layout, attached.initial())
    signer, identity = signer or Signer.load_or_create(run / KEY_FILE), run_id(config)
    agreed = Agreed(
        run=identity,
        base=base.sha256,
        layout=lambda name: state.node_layout(name).digest,
        state=start,
        key=signer.public,
    )
    kept = Broadcasts(run / "broadcasts", config.exchange.cache_rounds)
    up = up_codec(config.exchange)
    return Setup(run, config, identity, signer, agreed, state, up, down, kept, privacy)


def _privacy(config: Config, layout: Layout) -> PrivacyPlan | None:
    """The run's privacy plan, found not to swamp what the run could learn."""
    size = noisy_values(config.exchange, layout.size)
    if (plan := privacy_plan(config, size)) is not None:
        check_signal(plan, size, config.federation.nodes, config.privacy.most_noise)
    return plan


def _num_labels(run: Path, config: Config) -> int | None:
    """Number of classes of a sequence-classification run, from the run's public list of labels."""
    if config.base.task != "sequence-classification":
        return None
    try:
        return len(json.loads(RunStore(run).labels.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{run} has no file with the agreed classes; prepare the run again") from None
