"""DAGER's sequence search as published, for comparison: exact span checks, no prior, no polish.

Source: Petrov et al., DAGER, arXiv 2405.15586, section 4 (decoders): layer 1 gives the tokens, and a partial
record is extended by every token whose input of layer 2 lies in the row space of that layer's gradient.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from fedpeft_attacks.sequences import Assembled, Budget
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.spans import Spans
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.span_check import span_check
from fedpeft_attacks.views import NotApplicable, View
from fedpeft_attacks.work import Meter

_INSIDE = 0.05
_CANDIDATES = 16

Paths = list[tuple[tuple[int, ...], float]]


def dager(view: View, budget: Budget | None = None) -> Assembled:
    """Records whose every prefix passes the span check of layer 2; none where no token passes layer 1.

    Args:
        view: a gradient of the whole adapter, with model and number of records.
        budget: steps and longest record; the width of the beam is DAGER's own.
    """
    limits, start = budget or Budget(), view.knowledge.start
    blocks = observations(view)
    ranking, claimed = ([], 0) if isinstance(blocks, NotApplicable) else span_check(blocks)
    if start is None or not claimed:
        return Assembled((), (), 1.0)
    probe, meter = Probe.of(start, view.knowledge.frame), limits.meter()
    tokens = sorted(set(ranking[:claimed]) - set(probe.frame.begin))
    if not tokens:
        return Assembled((), (), 1.0)
    ended = _search(probe, second_layer(view, probe), tokens, (limits.longest, meter))
    end = () if probe.end is None else (probe.end,)
    records = tuple((*path, *end) for path, _ in sorted(ended, key=lambda pair: pair[1]))
    taken = records[: view.records]
    return Assembled(taken, (False,) * len(taken), 1.0, meter.work)


def second_layer(view: View, probe: Probe) -> Spans:
    """The row space of the next modules of the readers' kind."""
    readers = view.knowledge.readers
    kinds = {name.rpartition(".")[2] for name in readers}
    spans = Spans.of(view.values, probe, readers)
    names = [name for name in spans.bases if name.rpartition(".")[2] in kinds]
    return Spans({name: spans.bases[name] for name in names[:1]})


def _search(probe: Probe, spans: Spans, tokens: list[int], bounds: tuple[int, Meter]) -> Paths:
    longest, meter = bounds
    begin = probe.frame.begin
    alive: Paths = [(begin, 0.0)] if begin else [((token,), 0.0) for token in tokens]
    ended: Paths = []
    while alive and spans.bases and len(alive[0][0]) < longest and meter.step():
        longer = _extend(probe, spans, tokens, alive)
        if not longer:
            break
        alive = sorted(longer, key=lambda pair: pair[1])[:_CANDIDATES]
        ended = alive
    return ended or alive


def _extend(probe: Probe, spans: Spans, tokens: list[int], alive: Paths) -> Paths:
    """Every extension that passes, with the sum of its squared distances."""
    ids = torch.tensor([path for path, _ in alive])
    proposals = torch.tensor([tokens] * len(alive))
    (name, basis), *_ = spans.bases.items()
    new = probe.ahead(probe.read(ids, []), proposals, [name])
    x = functional.normalize(new[name], dim=-1)
    distances = (x - (x @ basis.T) @ basis).norm(dim=-1)
    return [
        ((*path, tokens[column]), score + float(distances[row, column]) ** 2)
        for row, (path, score) in enumerate(alive)
        for column in torch.nonzero(distances[row] < _INSIDE)[:, 0].tolist()
    ]
