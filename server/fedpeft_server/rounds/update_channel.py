"""How updates reach the coordinator's step: each by itself, in one secure sum, or under its noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedpeft.aggregation import Contribution
from fedpeft.aggregation.central_dp import Account, randomness
from fedpeft.aggregation.global_state import GlobalState
from fedpeft.epsilons import written
from fedpeft.plugins import ADAPTER_METHODS
from fedpeft.privacy import Ledger
from fedpeft.privacy.csprng import Randomness, words
from fedpeft.secagg import SecureAggregationError
from fedpeft_server.rounds.orders import Orders
from fedpeft_server.rounds.replies import Inbox
from fedpeft_server.rounds.roster import Member
from fedpeft_server.rounds.run_setup import Setup
from fedpeft_server.rounds.secure_aggregation import Asker, SecureSums

LEDGER = "ledger.sqlite"
MEASURED = ("codecs", "density", "entropy_bits")
"""Keys of an event that depend on single updates; left out under the coordinator's noise."""


class UpdateChannel(Protocol):
    """What depends on who may see a single update, in the order in which a round asks for it.

    Attributes:
        keeps_rounds: whether a round that is done must never be done again: each is a checkpoint.
        steps_always: whether a round takes its step however few updates came.
    """

    keeps_rounds: bool
    steps_always: bool

    def gathered(self, keys: Mapping[str, bytes]) -> None:
        """Take note of the public keys of the nodes that agree before the first round.

        Raises:
            FederationError: they are too few for a channel that needs all of them.
        """
        ...

    def reserve(self, round: int) -> dict[str, Any]:
        """Spend a round's privacy before any node is asked; returns what an event says of it.

        Raises:
            PrivacyError: the budget does not allow it.
        """
        ...

    def names(self, keys: Mapping[str, bytes]) -> Iterable[str]:
        """The nodes from which a round's are drawn, of those whose keys are known."""
        ...

    def coins(self, round: int) -> Randomness:
        """The source of a draw by secret coins."""
        ...

    def open(self, orders: Orders, members: Mapping[str, Member], inbox: Inbox, ask: Asker) -> list[str]:
        """Prepare the round with the members that can be asked; the names of those that go on to train."""
        ...

    def contributions(
        self, updates: Iterator[Contribution], orders: Orders, inbox: Inbox, needed: int
    ) -> Iterator[Contribution]:
        """What the step is made of; reading it reads, checks and accepts the replies."""
        ...

    def absorb(
        self, state: GlobalState, contributions: Iterator[Contribution], inbox: Inbox, needed: int
    ) -> tuple[GlobalState, dict[str, Any]]:
        """The state after the round, and figures of its step; none without a step.

        Figures hold ``applied`` and, where there is one, the ``mean``, float64, shape ``(layout.size,)``.
        """
        ...

    def is_spent(self, round: int) -> bool:
        """Whether the round is over whatever came of it, because it must not be tried again."""
        ...

    def redacted(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event without what the channel has to hide; numbers of replies and bytes stay."""
        ...

    def progress(self, applied: bool, inbox: Inbox, needed: int, online: int) -> tuple[bool, str]:
        """Whether a round got a run on, and the figures that say why not."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        ...

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go back to `facts`."""
        ...


@dataclass
class PlainChannel:
    """The coordinator sees each update, which the nodes made private themselves if anybody did."""

    setup: Setup
    keeps_rounds = False
    steps_always = False

    def gathered(self, keys: Mapping[str, bytes]) -> None:
        """Any quorum will do."""

    def reserve(self, round: int) -> dict[str, Any]:
        """The coordinator spends nothing."""
        return {}

    def names(self, keys: Mapping[str, bytes]) -> Iterable[str]:
        """All enrolled nodes."""
        return keys

    def coins(self, round: int) -> Randomness:
        """The operating system."""
        return words

    def open(self, orders: Orders, members: Mapping[str, Member], inbox: Inbox, ask: Asker) -> list[str]:
        """All of them train."""
        return list(members)

    def contributions(
        self, updates: Iterator[Contribution], orders: Orders, inbox: Inbox, needed: int
    ) -> Iterator[Contribution]:
        """The updates as they are."""
        return updates

    def absorb(
        self, state: GlobalState, contributions: Iterator[Contribution], inbox: Inbox, needed: int
    ) -> tuple[GlobalState, dict[str, Any]]:
        """Step along the valid updates, decoded one at a time; nothing is measured without a quorum."""
        first = next(contributions, None)
        if first is None:
            return state, {}
        updates: Any = _chain(first, contributions)
        method, of_method = ADAPTER_METHODS[self.setup.config.adapter.key], dict[str, Any]()
        if method.measured is not None:
            updates = list(updates)
            of_method = method.measured(state.layout, state.node_values, updates)
        after, measured = state.absorb(inbox.round, updates)
        if len(inbox.accepted) < needed:
            return state, {}
        return after, {"applied": True, **measured, **of_method}

    def is_spent(self, round: int) -> bool:
        """Nodes that answered a round send the same bytes again."""
        return False

    def redacted(self, event: dict[str, Any]) -> dict[str, Any]:
        """Everything."""
        return event

    def progress(self, applied: bool, inbox: Inbox, needed: int, online: int) -> tuple[bool, str]:
        """A run gets on with each step."""
        causes = "".join(f"; {name}: {cause}" for name, cause in sorted(inbox.refused.items()))
        cause = f"{len(inbox.accepted)} valid updates in round {inbox.round}, {needed} are needed{causes}"
        return applied, cause

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Nothing was kept."""


@dataclass
class SecureSumChannel(PlainChannel):
    """The coordinator sees the sum of a round alone; a sum that was opened is never opened again."""

    sums: SecureSums
    keeps_rounds = True

    def gathered(self, keys: Mapping[str, bytes]) -> None:
        """Fix the roster of the run."""
        self.sums.gathered(keys)

    def names(self, keys: Mapping[str, bytes]) -> Iterable[str]:
        """The fixed roster."""
        return self.sums.roster

    def open(self, orders: Orders, members: Mapping[str, Member], inbox: Inbox, ask: Asker) -> list[str]:
        """Let the nodes exchange keys and shares; those that did go on."""
        try:
            inbox.secure = self.sums.open(orders, members, ask)
        except SecureAggregationError as error:
            inbox.refused |= dict.fromkeys(members, str(error))
            return []
        inbox.refused |= inbox.secure.refused
        return list(inbox.secure.participants)

    def contributions(
        self, updates: Iterator[Contribution], orders: Orders, inbox: Inbox, needed: int
    ) -> Iterator[Contribution]:
        """The one mean that a sum shows of the updates, opened where it will be applied."""
        yield from updates
        if inbox.secure is None or len(inbox.accepted) < needed:
            return
        try:
            yield "secure sum", 1.0, self.sums.mean(inbox.secure, orders)
        except SecureAggregationError as error:
            inbox.refused["secure sum"] = str(error)
        inbox.refused |= inbox.secure.refused

    def is_spent(self, round: int) -> bool:
        """Nodes were asked to open the round's sum."""
        return self.sums.spent(round)

    def facts(self) -> dict[str, Any]:
        """The public scales of the next round."""
        return {"exponents": list(self.sums.exponents)}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Scales of an earlier round."""
        self.sums.exponents = list(facts["exponents"])


@dataclass
class CentralNoiseChannel(PlainChannel):
    """The coordinator sees each update, and adds the noise that hides it from all others."""

    account: Account
    keeps_rounds = True
    steps_always = True

    def reserve(self, round: int) -> dict[str, Any]:
        """In the coordinator's own ledger."""
        reservation = self.account.reserve(round)
        return {"spent": {"epsilon": written(reservation.epsilon), "delta": reservation.delta}}

    def coins(self, round: int) -> Randomness:
        """The operating system, or the seed of a plan that guarantees nothing."""
        return randomness(self.account.plan, self.setup.config.run.seed, round, "participation")

    def absorb(
        self, state: GlobalState, contributions: Iterator[Contribution], inbox: Inbox, needed: int
    ) -> tuple[GlobalState, dict[str, Any]]:
        """Step along the noisy mean, however few updates came: a step left out would reveal how many."""
        after, measured = state.absorb(inbox.round, contributions)
        self.account.released(inbox.round, measured["mean"])
        return after, {"applied": True, **measured}

    def redacted(self, event: dict[str, Any]) -> dict[str, Any]:
        """No figures of updates, and no names where coins are secret.

        Numbers of replies and bytes stay: ``metrics.jsonl`` is the coordinator's own.
        """
        public = {key: value for key, value in event.items() if key not in MEASURED}
        if self.setup.config.federation.selection != "poisson":
            return public
        causes = enumerate(sorted(event["refused"].values()), 1)
        return public | {"refused": {f"node {n}": cause for n, cause in causes}, "epsilon": {}, "ledger": {}}

    def progress(self, applied: bool, inbox: Inbox, needed: int, online: int) -> tuple[bool, str]:
        """Under noise all that counts is how many nodes are online."""
        least = self.setup.plan.quorum
        return online >= least, f"{online} nodes are online, {least} are needed"


def channel_of(setup: Setup, run: Path) -> UpdateChannel:
    """The channel that a run agreed to; the config allows no two at once.

    Args:
        setup: of the run.
        run: its directory, which holds the ledger of a coordinator that adds noise.

    Raises:
        PrivacyError: that ledger cannot be opened.
    """
    config = setup.config
    if setup.plan.central is not None:
        ledger = Ledger(run / LEDGER, config.privacy.budget or config.privacy.epsilon)
        account = Account(ledger, config.run.name, setup.run_id.hex(), setup.plan.central)
        return CentralNoiseChannel(setup, account)
    if config.exchange.secure.enabled:
        return SecureSumChannel(setup, SecureSums.of(setup))
    return PlainChannel(setup)


def _chain(first: Contribution, rest: Iterator[Contribution]) -> Iterator[Contribution]:
    yield first
    yield from rest
