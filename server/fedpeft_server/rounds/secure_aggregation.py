"""The coordinator's side of a round's secure sum: keys and shares before training, opening afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedpeft.aggregation.global_state import digest
from fedpeft.cohort import Cohort, draw
from fedpeft.errors import FederationError, FedPeftError
from fedpeft.exchange import Context, Decoded, PublicTernary
from fedpeft.exchange.codecs.public_ternary import exponent_of, moved
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.protocol.encoding import pack_table, unpack, unpack_table
from fedpeft.protocol.messages import COORDINATOR, LARGEST_TABLE, SecureReply, SecureTask
from fedpeft.secagg import CoordinatorRound, SecureAggregationError, SecureContext, from_residues
from fedpeft.secagg.discrete_gaussian import largest
from fedpeft.secagg.grid_values import from_grid
from fedpeft.secagg.messages import RECEIPT_BYTES
from fedpeft.training.plan import LocalPlan
from fedpeft_server.rounds.secure_progress import Progress, fix_roster

if TYPE_CHECKING:
    from fedpeft_server.rounds.orders import Orders
    from fedpeft_server.rounds.roster import Member
    from fedpeft_server.rounds.run_setup import Setup

Asker = Callable[[SecureTask, Mapping[str, bytes]], Mapping[str, Message]]
"""Asks nodes one phase, each with its blob; the replies that came in time, by name."""

REVEALS = 3
"""How often nodes are asked to let their shares go, while too few did."""


@dataclass
class SecureSum:
    """One attempt of a round's sum; a node that fails in a phase drops out, with the cause in ``refused``.

    Attributes:
        round: the protocol's state.
        task: the terms as nodes are told them.
        ask: how nodes are reached.
        refused: causes by node.
    """

    round: CoordinatorRound
    task: SecureTask
    ask: Asker
    refused: dict[str, str] = field(default_factory=dict[str, str])
    _inboxes: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])

    @classmethod
    def open(cls, context: SecureContext, task: SecureTask, ask: Asker, present: Iterable[str]) -> SecureSum:
        """Let nodes of a roster exchange keys and shares.

        Args:
            context: the terms, with the whole roster of the round.
            task: the terms as nodes are told them.
            ask: how nodes are reached.
            present: the nodes of the roster that can be asked now.

        Raises:
            SecureAggregationError: too few of them did.
        """
        made = cls(CoordinatorRound(context), task, ask)
        roster = pack_table(context.keys)
        made._phase("keys", dict.fromkeys(present, roster), made.round.add_advertisement)
        advertisements = made.round.advertisements()
        table = pack_table(advertisements)
        made._phase(
            "shares",
            dict.fromkeys(advertisements, table),
            lambda name, blob: made.round.add_shares(name, unpack_table(blob)),
        )
        made._inboxes = made.round.inboxes()
        return made

    @property
    def participants(self) -> tuple[str, ...]:
        """The nodes that may now train, in the order of the names."""
        return self.round.participants

    @property
    def payload_bytes(self) -> int:
        """Length of a masked update and its receipt."""
        context = self.round.context
        return context.size * context.bits // 8 + RECEIPT_BYTES

    def shares_for(self, name: str) -> bytes:
        """What the nodes dealt to one of them."""
        return pack_table(self._inboxes[name])

    def add(self, name: str, payload: bytes) -> None:
        """Add a node's masked integers.

        Raises:
            SecureAggregationError: they are not what its receipt says, or it has no part in the sum.
        """
        values = np.frombuffer(payload[:-RECEIPT_BYTES], self.round.context.dtype)
        self.round.add_masked(name, values, payload[-RECEIPT_BYTES:])

    def agree(self) -> None:
        """Let the survivors sign who they are; nothing can be opened before.

        Raises:
            SecureAggregationError: too few nodes survived or signed.
        """
        receipts = self.round.receipts()
        self._phase("agree", dict.fromkeys(receipts, pack_table(receipts)), self.round.add_signature)
        self.round.signatures()

    def result(self, bound: int | None) -> tuple[NDArray[np.int64], int]:
        """Open the sum: int64, shape ``(size,)``, and the number of nodes in it.

        Nodes that did not let their shares go are asked again as long as too few did: there is no other
        attempt after this one.

        Args:
            bound: largest absolute value that a node may have added; None where sums of such could wrap,
                which they do once in 10^12 runs.

        Raises:
            SecureAggregationError: too few nodes let their shares go, or the sum is beyond its bound.
        """
        signatures = self.round.signatures()
        table = pack_table(signatures)
        for _ in range(REVEALS):
            silent = [name for name in signatures if name not in self.round.revealed]
            if len(signatures) - len(silent) >= self.round.context.threshold:
                break
            self._phase("reveal", dict.fromkeys(silent, table), self.round.add_reveal)
        total, nodes = self.round.result(), len(self.round.survivors)
        return from_residues(total, self.round.context.bits, None if bound is None else bound * nodes), nodes

    def _phase(self, phase: str, blobs: Mapping[str, bytes], take: Callable[[str, bytes], None]) -> None:
        """Ask some nodes and take each reply alone."""
        replies = self.ask(replace(self.task, phase=phase), blobs)
        for name in blobs:
            try:
                take(name, self._answer(phase, replies.get(name)))
                self.refused.pop(name, None)
            except FedPeftError as error:
                self.refused[name] = f"{phase}: {error}"

    def _answer(self, phase: str, message: Message | None) -> bytes:
        if message is None:
            raise FedPeftError("no reply before the phase closed")
        reply, blob = unpack(message, SecureReply, LARGEST_TABLE)
        if (reply.phase, reply.round) != (phase, self.task.round):
            raise FedPeftError(f"its reply is for {reply.phase} of round {reply.round}")
        return blob


@dataclass
class SecureSums:
    """The secure sums of a run: terms, public scales that follow the nodes' votes, and what sums mean.

    Attributes:
        setup: of the run.
        exponents: of the next round's scales, per tensor; part of every checkpoint.
    """

    setup: Setup
    exponents: list[int]

    @classmethod
    def of(cls, setup: Setup) -> SecureSums:
        """The sums of a run that agreed to them, before its first round."""
        tensors = len(setup.initial.layout.names)
        return cls(setup, [exponent_of(first_scale(setup))] * tensors)

    def open(self, orders: Orders, members: Mapping[str, Member], ask: Asker) -> SecureSum:
        """Begin a round's sum, whose roster is always the same; nodes that are away have dropped out of it.

        Raises:
            SecureAggregationError: they are too few, too few of them exchanged keys, or the round's sum has
                been opened, or begun to be, or can no more be: then the round is over.
        """
        config, run, round = self.setup.config, self.setup.run, orders.round
        if self.spent(round):
            raise SecureAggregationError(f"the sum of round {round} was opened before; no other one can be")
        follows = config.exchange.up.support == "released" and orders.follows(members.values())
        progress = Progress.of(run, round).next(follows).save(run, round)
        lost = self._without_the_newest(orders, members) if progress.follows else {}
        if config.federation.nodes - len(lost) < Cohort.of(config).threshold:
            replace(progress, opening=True).save(run, round)
            raise SecureAggregationError(f"{len(lost)} nodes cannot take part: {next(iter(lost.values()))}")
        size = self._codec(orders, progress.follows).support.positions(self.setup.initial.layout).size
        votes = 0 if self.noisy else len(self.exponents)
        task = SecureTask(
            phase="keys",
            round=round,
            attempt=progress.attempt,
            state=digest(orders.state),
            threshold=Cohort.of(config).threshold,
            size=size + votes,
            follows=int(progress.follows),
            scales=[] if self.noisy else self.exponents,
        )
        opened = SecureSum.open(self._context(task), task, ask, sorted(members.keys() - lost.keys()))
        opened.refused |= lost
        return opened

    def _without_the_newest(self, orders: Orders, members: Mapping[str, Member]) -> dict[str, str]:
        """Causes for the nodes that get the whole state where the support follows the newest broadcast."""
        cause = f"the support of round {orders.round} follows a broadcast that it has not read"
        return {name: cause for name, member in members.items() if not orders.follows([member])}

    def _context(self, task: SecureTask) -> SecureContext:
        """The terms of an attempt as every node must have them."""
        config, keys = self.setup.config, self.roster
        asked = draw(keys, config.federation.participation, config.run.seed, task.round)
        secure, noise = config.exchange.secure, self.setup.plan.distributed
        return SecureContext(
            run=self.setup.run_id,
            round=task.round,
            attempt=task.attempt,
            state=task.state,
            roster=tuple((name, keys[name]) for name in asked),
            threshold=task.threshold,
            least_nodes=secure.min_nodes,
            size=task.size,
            bits=secure.bits,
            public=task.public if noise is None else noise.bound_to(task.public),
            colluders=secure.colluders,
        )

    @property
    def roster(self) -> dict[str, bytes]:
        """The keys of all nodes of the run, which were fixed when it began.

        Raises:
            FederationError: they were not.
        """
        return self.gathered({})

    def gathered(self, keys: Mapping[str, bytes]) -> dict[str, bytes]:
        """Fix the roster of the run, if that is not done yet, to the nodes that are there.

        Raises:
            FederationError: they are not as many as were agreed on.
        """
        nodes = self.setup.config.federation.nodes
        if (roster := fix_roster(self.setup.run, keys, nodes)) is None:
            raise FederationError(
                f"{len(keys)} nodes are here, the secure sums of this run are of {nodes}: start all of them"
            )
        return roster

    def spent(self, round: int) -> bool:
        """Whether nodes were asked to open a sum of this round: there is no other attempt then."""
        return Progress.of(self.setup.run, round).opening

    def mean(self, opened: SecureSum, orders: Orders) -> Decoded:
        """Open a sum: the mean update; the scales move as the nodes voted.

        Raises:
            SecureAggregationError: too few nodes are left, or the sum cannot be of agreed values.
        """
        opened.agree()
        run, round = self.setup.run, orders.round
        replace(Progress.of(run, round), opening=True).save(run, round)
        layout, codec = self.setup.initial.layout, self._codec(orders, bool(opened.task.follows))
        if (privacy := self.setup.plan.distributed) is not None:
            return self._noisy_mean(opened, codec, privacy, round)
        total, nodes = opened.result(bound=1)
        votes = len(self.exponents)
        summed = codec.at_scales(self.exponents).values(total[:-votes], layout)
        self.exponents = moved(self.exponents, total[-votes:], nodes)
        return Decoded(layout, summed / np.float32(nodes))

    @property
    def noisy(self) -> bool:
        """Whether the nodes add shares of noise, on a grid of fixed step."""
        return self.setup.plan.distributed is not None

    def _noisy_mean(self, opened: SecureSum, codec: PublicTernary, plan: PrivacyPlan, round: int) -> Decoded:
        """The mean that a noisy sum stands for, fewer nodes never weaken the guarantee.

        Of whole nodes' updates: over the public number of nodes that were expected. Of gradients: over the
        public batch size of the nodes in the sum, times the round's learning rate.
        """
        assert plan.grid is not None
        config, grid = self.setup.config, plan.grid
        most = grid.limit + largest(grid.share(plan.noise_multiplier))
        fits = most * len(opened.participants) < 2 ** (config.exchange.secure.bits - 1)
        total, nodes = opened.result(bound=most if fits else None)
        values = from_grid(total, plan.clip / grid.steps_per_clip) / plan.expected_batch_size
        if plan.unit != "node":
            values *= LocalPlan.of(config.federation, round).lr / nodes
        layout = self.setup.initial.layout
        return Decoded(layout, values.astype(np.float32), codec.support.positions(layout))

    def _codec(self, orders: Orders, follows: bool) -> PublicTernary:
        """The codec of a round's integers, without scales."""
        context = Context(self.setup.run_id, orders.round, COORDINATOR, digest(orders.state), "up")
        codec = self.setup.plan.up.codec
        assert isinstance(codec, PublicTernary)
        return codec.at(context, orders.newest() if follows else None)


def first_scale(setup: Setup) -> float:
    """A public guess of an update's magnitudes, from constants alone; the votes correct it."""
    federation, privacy = setup.config.federation, setup.plan.local
    steps, size = federation.local_steps, setup.initial.layout.size
    if federation.optimiser == "adamw":
        return federation.lr * steps / 2
    gain = federation.lr / (1 - federation.momentum)
    if privacy is not None:
        noise = privacy.noise_multiplier * privacy.clip / privacy.expected_batch_size
        return gain * noise * math.sqrt(steps)
    return gain * federation.max_grad_norm * steps / math.sqrt(size)
