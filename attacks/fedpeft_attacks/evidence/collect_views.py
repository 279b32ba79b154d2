"""From a run directory to views: what was seen where, and the truth that only the audit knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.adapters import attach, detach
from fedpeft.bases import load_base
from fedpeft.config import Config
from fedpeft.progress_reports import at, each
from fedpeft.run_plan import num_classes
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.taps import AGGREGATE, Tap, TokenIds, aggregate_of, read_values
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of, prior_of
from fedpeft_attacks.views import Knowledge, Start, View, role_of

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.bases import Base

ALL_NODES = "all audited nodes"


@dataclass(frozen=True, eq=False)
class Observed:
    """A view with its place in the run and the truth.

    Attributes:
        node: whose update it is.
        round: 1-based round.
        view: what the attack may see.
        truth: distinct tokens behind the update, without special ones.
        records: token ids of the records behind it.
    """

    node: str
    round: int
    view: View
    truth: frozenset[int]
    records: TokenIds = field(default_factory=list[list[int]])


@dataclass(frozen=True)
class Evidence:
    """All that an audit looks at.

    Attributes:
        base: the base of the run.
        stages: observed views by stage, in the order in which an update passes them.
        prior: the base's language prior, shape ``(tokens,)``.
        frame: how records begin and end and how their tokens are weighted.
    """

    base: Base
    stages: dict[str, list[Observed]]
    prior: NDArray[np.float64]
    frame: RecordFrame


def gather(store: RunStore, config: Config, taps: Sequence[Tap]) -> Evidence:
    """Load the base once and take the views of all stages.

    Raises:
        BaseModelError: the base cannot be loaded.
        AuditError: a tap does not fit the run's adapter.
    """
    detach()
    at("loading the base")
    base = load_base(config.base, num_classes(config.base, _labels(store, config)))
    prior, frame = prior_of(base), _frame(store, base)
    seen, starts = list[Observed](), dict[bytes, Start]()
    for tap in each(taps, "tapped update"):
        attached = attach(base, config.adapter, config.run.seed, tap.node)
        start = _start(attached, tap)
        if start is not None:  # all nodes of a round were sent the same
            start = starts.setdefault(sha256(start.state.tobytes()).digest(), start)
        known = replace(
            knowledge_of(attached, prior, (tap.node, tap.round), tap.lr), start=start, frame=frame
        )
        for stage in tap.stages:
            records = tap.records(stage)
            truth = distinct(records, known)
            name, layout = attached.method.name, attached.layout
            values, counts = tap.values(stage), (len(truth), len(records))
            view = View(stage, role_of(stage), name, layout, values, known, *counts)
            seen.append(Observed(tap.node, tap.round, view, truth, records))
    seen += _aggregates(store, seen)
    stages: dict[str, list[Observed]] = {}
    for observed in seen:
        stages.setdefault(observed.view.stage, []).append(observed)
    return Evidence(base, stages, prior, frame)


def _labels(store: RunStore, config: Config) -> Sequence[str]:
    """The labels that a classifier's nodes agreed to; a language model has no outputs of its own for them."""
    if config.base.task == "causal-lm":
        return ()
    return json.loads((store.homes[0] / "node.json").read_text(encoding="utf-8")).get("labels", ())


def _frame(store: RunStore, base: Base) -> RecordFrame:
    """What is public of every record of the run."""
    labels = json.loads(store.labels.read_text(encoding="utf-8")) if store.labels.is_file() else ()
    return RecordFrame.of(base.tokenizer, store.config.data, labels)


def _start(attached: Attached, tap: Tap) -> Start | None:
    """What the node was sent.

    None for factors, whose global part is another adapter each round, and for a base that writes no text.
    """
    state, writes = tap.start, attached.base.task == "causal-lm"
    return None if state is None or attached.aggregator is not None or not writes else Start(attached, state)


def distinct(records: TokenIds, known: Knowledge) -> frozenset[int]:
    """Distinct tokens of records without the special ones."""
    return frozenset(token for row in records for token in row) - known.special


def _aggregates(store: RunStore, seen: Sequence[Observed]) -> list[Observed]:
    rounds = sorted({observed.round for observed in seen})
    aggregates = (
        _aggregate(store, number, [observed for observed in seen if observed.round == number])
        for number in rounds
    )
    return [observed for observed in aggregates if observed is not None]


def _aggregate(store: RunStore, number: int, group: Sequence[Observed]) -> Observed | None:
    """The mean of a round; its truth is what the tapped nodes put in. None where its layout is another."""
    path, like = aggregate_of(store, number), group[-1].view
    values = None if path is None else read_values(path)
    if values is None or values.shape != (like.layout.size,):
        return None
    truth = frozenset[int]().union(*(observed.truth for observed in group))
    role = role_of(AGGREGATE)
    view = View(AGGREGATE, role, like.adapter, like.layout, values, like.knowledge, len(truth))
    return Observed(ALL_NODES, number, view, truth)
