"""What follows from a run's config: nodes, coordinator, audit and reports take it from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedpeft.cohort import share_of
from fedpeft.exchange.plan import ExchangePlan, noisy_values, up_plan
from fedpeft.exchange.plan import plan_from_config as exchange_plan
from fedpeft.privacy.noise_to_signal import Signal, check_signal, signal
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.plan_builder import plan_from_config as privacy_plan

if TYPE_CHECKING:
    from fedpeft.bases import Base
    from fedpeft.config import Config
    from fedpeft.config.models import BaseConfig, FederationConfig


@dataclass(frozen=True)
class RunPlan:
    """Privacy, exchange and quorum of one run, as all who take part in it must see them.

    Attributes:
        config: of the run.
        noisy_values: how many of the exchanged values bear noise under DP: those of a public support, or all.
        privacy: the run's privacy plan, whoever adds the noise; None: no DP.
        up: what an update passes on its way out, and the codec that carries it.
        down: the same of a broadcast. It keeps no residual: the next delta starts from the exact state.
    """

    config: Config
    noisy_values: int
    privacy: PrivacyPlan | None
    up: ExchangePlan
    down: ExchangePlan

    @classmethod
    def from_config(cls, config: Config, size: int, noisy: int | None = None) -> RunPlan:
        """Work out the plan of a config; the noise is calibrated once per process for each privacy plan.

        Args:
            config: of the run.
            size: number of values that a node exchanges, `fedpeft.exchange.Layout.size`.
            noisy: how many of them bear noise; None: as the exchange settings say.

        Raises:
            PrivacyError: there is no such privacy plan.
            PlanError: the steps of the exchange are not sound.
        """
        noisy = noisy_values(config.exchange, size) if noisy is None else noisy
        privacy = privacy_plan(config, noisy)
        local = privacy is not None and privacy.trust == "local"
        down = config.exchange.down.model_copy(update={"error_feedback": False})
        up = up_plan(config.exchange, local, _node_clip(privacy))
        return cls(config, noisy, privacy, up, exchange_plan(down, private=False))

    @classmethod
    def from_base(cls, config: Config, base: Base) -> RunPlan:
        """The plan of a run on a loaded base, whose adapter says how many values are exchanged.

        Raises:
            FedPeftError: the adapter does not fit the base, or there is no such plan.
        """
        from fedpeft.adapters import attach

        return cls.from_config(config, attach(base, config.adapter, config.run.seed).layout.size)

    def checked(self) -> RunPlan:
        """This plan, if its noise leaves a signal to learn from.

        Raises:
            PrivacyError: the whole run's noise is above ``privacy.max_noise_to_signal`` times the signal.
        """
        if self.privacy is not None:
            most = self.config.privacy.max_noise_to_signal
            check_signal(self.privacy, self.noisy_values, self._asked, most)
        return self

    @cached_property
    def signal(self) -> Signal | None:
        """Noise over signal; None without DP."""
        if self.privacy is None:
            return None
        return signal(self.privacy, self.noisy_values, self._asked)

    @property
    def _asked(self) -> int:
        """Nodes of one round."""
        return share_of(self.config.federation.participation, self.config.federation.nodes)

    @property
    def claim(self) -> str:
        """What the run promises, on one line; empty without DP."""
        if self.privacy is None or self.signal is None:
            return ""
        plan = self.privacy
        bands = f", {plan.bands} bands" if plan.bands > 1 else ""
        return (
            f"epsilon {plan.epsilon():.3g} at delta {plan.delta:g} per {plan.unit}, trust {plan.trust}{bands}"
            f"; noise over signal {self.signal.whole_run:.2g} over the run"
        )

    @property
    def local(self) -> PrivacyPlan | None:
        """The plan of the noise that a node adds while it trains, if it adds some."""
        return self._of_trust("local")

    @property
    def central(self) -> PrivacyPlan | None:
        """The plan of the noise that the coordinator adds, if it adds some."""
        return self._of_trust("central")

    @property
    def distributed(self) -> PrivacyPlan | None:
        """The plan of the noise that nodes add to a secure sum in shares, if they do."""
        return self._of_trust("distributed")

    def _of_trust(self, trust: str) -> PrivacyPlan | None:
        return self.privacy if self.privacy is not None and self.privacy.trust == trust else None

    @property
    def clipping(self) -> PrivacyPlan | None:
        """The plan under which a node clips the gradients of single records or persons, if it does."""
        return self.privacy if self.privacy is not None and self.privacy.unit != "node" else None

    @property
    def summed(self) -> PrivacyPlan | None:
        """The plan of clipped gradient sums that bear the noise of all nodes, if that is what they send."""
        return self.clipping if self.distributed is not None else None

    @property
    def quorum(self) -> int:
        """Valid replies that a round needs."""
        return quorum(self.config.federation)


def quorum(federation: FederationConfig) -> int:
    """Valid replies that a round needs: as configured, or a majority of those expected to be asked."""
    asked = max(1, round(federation.participation * federation.nodes))
    return min(federation.quorum or asked // 2 + 1, federation.nodes)


def classes_of(base: BaseConfig, labels: Sequence[str]) -> tuple[str, ...] | None:
    """The agreed labels where they are the outputs of a sequence classifier; None for a language model."""
    return tuple(labels) if base.task == "sequence-classification" else None


def num_classes(base: BaseConfig, labels: Sequence[str]) -> int | None:
    """Outputs of a sequence-classification head, one per agreed label; None for a causal language model."""
    classes = classes_of(base, labels)
    return None if classes is None else len(classes)


def _node_clip(privacy: PrivacyPlan | None) -> float | None:
    """Where the node clips its update itself: not where an adaptive clip must see the norms as they are."""
    if privacy is None or privacy.trust != "central" or privacy.adaptive is not None:
        return None
    return privacy.clip
