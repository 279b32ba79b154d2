"""From a view to records: decode one, subtract its gradient, decode the next, and polish.

Source: DAGER (Petrov et al., arXiv 2405.15586) for the span check, ReCIT (arXiv 2504.20570) for pairing in
batches; matched filter, successive cancellation and the test by the residual are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from fedpeft.errors import AuditError
from fedpeft.exchange.layout import FloatVector
from fedpeft.training.modes import steady
from fedpeft_attacks.sequences import Assembled, Bag, Budget
from fedpeft_attacks.sequences.beam import CERTAIN, Path, Search, bag_weights
from fedpeft_attacks.sequences.matched import Filter, Null, null_of
from fedpeft_attacks.sequences.prefix_tree import PrefixTree, chosen
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.spans import Spans
from fedpeft_attacks.tokens.blocks import Block
from fedpeft_attacks.tokens.matching_pursuit import matching_pursuit
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.sparse_bayes import sparse_bayes
from fedpeft_attacks.views import UNDECLARED, Guess, NotApplicable, Start, View
from fedpeft_attacks.work import NOTHING, SAFETY, Meter, Work

RAW = frozenset({"gradient", "reference"})
"""Stages whose values are a gradient; all others are a step against it, of unknown length."""

_EXPLAINED = 1e-2
_PROPOSALS = 64
_USUAL = 48  # tokens of a record, for the expected strength of one
_ANSWER = 4  # of them those of the answer, where the prompt weighs less
_CHECKED = 16
_RARE = 1e-9  # chance of a token that the base never writes
_WIDER = (1, 2, 4)
_TINY = 1e-30

_UNKNOWN = (
    "neither data.template nor agreed labels say where an answer begins, so every token was taken to bear "
    "the same loss"
)

Record = tuple[int, ...]


def assemble(view: View, budget: Budget | None = None) -> Guess | NotApplicable:
    """Read whole records from a view: the attack "sequences" of the registry.

    Args:
        view: with token inputs, model and number of records; a gradient, or an update of the whole layout.
        budget: steps, width of the beam, longest record; the token bag takes its own steps.

    Returns:
        The token bag as `ranking`, the records as `sequences`, and `certain` where their gradient leaves
        nothing of what was observed.
    """
    start = view.knowledge.start
    if start is None or not view.records:
        return NotApplicable("it needs the model and the number of records")
    if view.knowledge.rows is None:
        return UNDECLARED
    if view.layout.digest != start.attached.layout.digest:
        return NotApplicable("it needs the values of the whole adapter")
    budget = budget or Budget()
    bag, is_stopped = token_bag(view, budget.seconds)
    assembled = assemble_from(view, bag, budget)
    work = replace(assembled.work, is_stopped=is_stopped or assembled.work.is_stopped)
    special = view.knowledge.special
    written = (
        [t for record in assembled.sequences for t in record if t not in special]
        if all(assembled.certain)
        else []
    )
    ranking = list(dict.fromkeys([*written, *(token for token in bag.ranking if token not in special)]))
    records = assembled.sequences, assembled.certain
    frame = view.knowledge.frame
    unknown = "" if frame is None or frame.knows_answers else _UNKNOWN
    note = "; ".join(part for part in (view.knowledge.approximation, unknown) if part)
    return Guess(ranking, len(set(written)), "sequence assembly", *records, work, note)


def token_bag(view: View, seconds: float = SAFETY) -> tuple[Bag, bool]:
    """Tokens by the solvers of the token attacks; the penalty is high where the pursuit explains all.

    Returns:
        The bag, and whether the safety stop of so many processor seconds left it incomplete.
    """
    blocks, meter = observations(view), Meter(seconds=seconds)
    if isinstance(blocks, NotApplicable):
        return Bag(), False
    bag = _bag(view, blocks, meter)
    return bag, meter.work.is_stopped


def _bag(view: View, blocks: Sequence[Block], meter: Meter) -> Bag:
    tokens, known = view.tokens + len(view.knowledge.special), view.knowledge
    usable = known.approximation is None and not all(block.is_full for block in blocks)
    if usable and tokens < blocks[0].width:
        pursuit = matching_pursuit(blocks, tokens, meter)
        if pursuit.unexplained < _EXPLAINED:
            return Bag(tuple(pursuit.ranking), len(pursuit.chosen))
    return Bag(tuple(sparse_bayes(blocks, known.prior, meter).ranking), 2 * tokens, 3.0)


def assemble_from(view: View, bag: Bag, budget: Budget | None = None) -> Assembled:
    """Assemble records from a view and a token bag of the caller.

    Args:
        view: with ``knowledge.start`` and ``records``; values in the layout of the whole adapter.
        bag: which tokens to prefer.
        budget: steps, width of the beam, longest record.
    """
    start = view.knowledge.start
    if start is None:
        raise AuditError("this view holds no model; give a view whose knowledge has a start")
    work = _Work.of(view, bag, budget or Budget(), start)
    with steady(work.probe.attached.model):  # what each pass puts back is looked up once for all of them
        whole, growth = work.whole(PrefixTree.of(view, work.probe, work.budget.longest))
        records = work.cancel(whole)
        left = work.left(records)
    certain = (left < CERTAIN,) * len(records)
    return Assembled(tuple(records), certain, left, growth + work.meter.work)


@dataclass(frozen=True, eq=False)
class _Work:
    """One assembly: what was seen, and how to look at it."""

    probe: Probe
    start: Start
    observed: FloatVector = field(repr=False)
    raw: bool
    records: int
    bag: Bag
    budget: Budget
    meter: Meter
    leave: frozenset[str]
    prior_V: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, view: View, bag: Bag, budget: Budget, start: Start) -> _Work:
        probe, raw = Probe.of(start, view.knowledge.frame), view.stage in RAW
        observed = view.values if raw else -view.values
        leave = view.knowledge.readers if view.knowledge.approximation is None else frozenset[str]()
        prior = torch.from_numpy(np.log(view.knowledge.prior + _RARE)).float()
        return cls(probe, start, observed, raw, view.records, bag, budget, budget.meter(), leave, prior)

    @cached_property
    def null(self) -> Null:
        """What the base's own texts look like; only the filter asks, and not every record takes one."""
        return null_of(self.start, self.probe)

    def whole(self, tree: PrefixTree | None) -> tuple[list[Record], Work]:
        """Records that complete row spaces name, and the work for it: none where there is no tree."""
        if tree is None:
            return [], NOTHING
        meter = Meter(self.budget.longest, self.budget.seconds)
        leaves = tree.leaves(meter)
        is_weighted = self.probe.frame.knows_answers
        records = chosen(leaves, self.records, self.observed, self.gradient, self.raw, is_weighted)
        return records, meter.work

    def gradient(self, record: Record) -> FloatVector:
        """Gradient of one record."""
        return self.probe.gradient([record])

    def cancel(self, whole: Sequence[Record]) -> list[Record]:
        """Decode what is left beside whole records, one after the other; then again while it helps."""
        records = list(whole)
        while len(records) < self.records and not (records and self.meter.is_over):
            records.append(self.decode(records))
        for place in range(len(whole), len(records)):
            left = self.left(records)
            if self.meter.is_over or left < CERTAIN:
                break
            others = [record for index, record in enumerate(records) if index != place]
            again = self.polish(self.decode(others) if others else records[place], others)
            if self.left([*others, again]) < left:
                records[place] = again
        return records

    def decode(self, others: Sequence[Record]) -> Record:
        """The record that best explains what the others leave; first without the filter, which is cheaper."""
        total = self.total(others)
        residual, left = self.off(total), self.left_by(total)
        spans = Spans.of(residual, self.probe, self.leave)
        tried: list[tuple[Path, float]] = []
        if spans.bases and self.records - len(others) == 1:
            for factor in _WIDER:
                search = replace(self.search(None, spans), width=factor * self.budget.beam)
                tried.append(search.run(left, self.meter))
                if tried[-1][1] < CERTAIN:
                    break
        if not tried or not (tried[-1][1] < CERTAIN or self.meter.is_over):
            tried.append(self.search(self.filter(residual), spans).run(left, self.meter))
        return min(tried, key=lambda pair: pair[1])[0].tokens

    def search(self, filter_: Filter | None, spans: Spans) -> Search:
        weights = bag_weights(self.bag, len(self.probe.head_VD))
        proposals = min(max(_PROPOSALS, self.bag.claimed), 2 * _PROPOSALS)
        beam, longest = self.budget.beam, self.budget.longest
        return Search(self.probe, filter_, spans, weights, beam, proposals, longest, self.prior_V)

    def filter(self, residual: FloatVector) -> Filter:
        usual = self.null.size / math.sqrt(self.records)
        scale = 1.0 if self.raw else usual / max(float(np.linalg.norm(residual)), _TINY)
        scaled = np.asarray(residual * scale, np.float32)
        weight = self.probe.frame.prompt_weight
        share = weight / (weight * _USUAL + (1 - weight) * _ANSWER)  # a prompt's token in the gradient of one
        return Filter.of(self.probe, self.null, scaled, share / self.records)

    def total(self, records: Sequence[Record]) -> FloatVector:
        """What records contribute to the gradient of the batch."""
        total = np.zeros_like(self.observed)
        for record in records:
            total += self.gradient(record)
        return total / np.float32(self.records)

    def off(self, total: FloatVector) -> FloatVector:
        """The observed values less a gradient, whose length is fitted where they are a step."""
        if self.raw:
            return self.observed - total
        length = max(float(self.observed @ total), 0.0) / max(float(total @ total), _TINY)
        return np.asarray(self.observed - total * length, np.float32)

    def left(self, records: Sequence[Record]) -> float:
        """Share of the observed energy that records leave."""
        return self._share(self.total(records))

    def left_by(self, total: FloatVector) -> Callable[[Path], float]:
        """What is left by the records of this gradient and a path."""
        return lambda path: self._share(total + self.total([path.tokens]))

    def _share(self, total: FloatVector) -> float:
        energies = [float(np.square(v, dtype=np.float64).sum()) for v in (self.off(total), self.observed)]
        return energies[0] / max(energies[1], _TINY)

    def polish(self, record: Record, others: Sequence[Record]) -> Record:
        """Swap single tokens while the residual falls; the matched filter names the swaps."""
        total = self.total(others)
        filter_, left = self.filter(self.off(total)), self.left_by(total)
        best = left(Path(record, 0.0))
        while best >= CERTAIN and self.meter.step():
            trials = [(left(Path(swap, 0.0)), swap) for swap in self.swaps(record, filter_)]
            if not trials or min(trials)[0] >= best:
                break
            best, record = min(trials)
        return record

    def swaps(self, record: Record, filter_: Filter) -> list[Record]:
        """Records with one other token, the most promising ones."""
        ids = torch.tensor([record])
        table = filter_.scores(ids)[0, :-1] + self.probe.logits(ids)[0, :-1].log_softmax(dim=-1)
        table = table + bag_weights(self.bag, table.shape[1])
        gains = (table - table.gather(1, ids[0, 1:, None]))[:-1]
        best = gains.flatten().topk(min(_CHECKED, gains.numel())).indices.tolist()
        places = [divmod(place, gains.shape[1]) for place in best]
        return [(*record[: at + 1], token, *record[at + 2 :]) for at, token in places]
