"""The power of the attack: the same with all protections off, on the raw gradient of a batch of each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.taps import GRADIENT
from fedpeft_attacks.results.measures import Strength
from fedpeft_attacks.update_membership.contrasts import FALSE_ALARMS, Contrast, Pooled, pooled
from fedpeft_attacks.update_membership.round_scores import (
    ALIGNMENT,
    Observation,
    gradient_of,
    score_round,
)

if TYPE_CHECKING:
    from fedpeft.data import Example

NODES, OTHERS = 2, 64
"""Nodes of which a batch is attacked at most, and the most other records of the same node for each."""

_WHERE = (
    "the raw gradient of one batch of {} before an audited round, without noise or compression, where the "
    "area under the curve is {:.2f}"
)


def undefended_scores(
    seen: Observation, records: Mapping[str, Sequence[Example]], size: int
) -> Pooled | None:
    """Members of a batch against other records of the same node, in the batch's raw gradient.

    Args:
        seen: what the adversary holds at the start of a round; its values are not looked at.
        records: records of each node. The first of them, at most half, are its batch.
        size: records of a batch.

    Returns:
        None where no node has enough records.
    """
    batches = {name: min(size, len(group) // 2) for name, group in list(records.items())[:NODES]}
    batches = {name: count for name, count in batches.items() if count}
    if not batches:
        return None
    seen.attached.load(seen.start)
    with steady(seen.attached.model):
        values = {
            (GRADIENT, name): gradient_of(seen.attached, records[name][:count])
            for name, count in batches.items()
        }
    tried = {name: records[name][: count + OTHERS] for name, count in batches.items()}
    table = score_round(replace(seen, values=values), tried).table
    scores = {name: table[ALIGNMENT, name, (GRADIENT, name)] for name in batches}
    return pooled([Contrast((scores[name][:count], scores[name][count:])) for name, count in batches.items()])


def power(seen: Observation, records: Mapping[str, Sequence[Example]], size: int) -> Strength | None:
    """What the attack finds with all protections off; None where it cannot be tried.

    Args:
        seen: as for `undefended_scores`.
        records: as there.
        size: as there.
    """
    scores = undefended_scores(seen, records, size)
    if scores is None:
        return None
    at_few, count = scores.detected(FALSE_ALARMS[0]), min(NODES, len(records))
    text = _WHERE.format(f"{count} node{'' if count == 1 else 's'}", scores.area("").value)
    share = None if at_few is None else at_few.value
    return Strength(text=text, shares={"the records of a batch, at 1 % false alarms": share})
