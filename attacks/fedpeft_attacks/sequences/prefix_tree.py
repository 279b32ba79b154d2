"""All records of a batch at once: every prefix whose next input lies in complete row spaces grows.

What a module after the first layer reads at a position depends on the prefix up to there and nothing else.
Where row spaces are complete (`fedpeft_attacks.sequences.complete_spans`), the inputs of true prefixes lie in
all of them and those of others in none, so a tree of prefixes that keeps what lies inside is the forest of
the batch's records. Source: DAGER (Petrov et al., arXiv 2405.15586), section 4; that completeness is told
before the search, by the gap in the singular values, that several spaces judge together, and that the leaves
are chosen by their gradients, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from scipy.optimize import nnls

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.sequences.complete_spans import CompleteSpans
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.tokens.blocks import Matrix
from fedpeft_attacks.views import View
from fedpeft_attacks.work import Meter

INSIDE = 1e-4
"""Sine of the angle to complete spaces below which an input lies in them. On a base of 135 million parameters
true inputs measured 1e-7 to 2e-5, others at least 1e-3 in one space and 7e-3 in the median of four."""

_TOKEN = 1e-3  # the same for token inputs: one too many costs time, one too few costs a record
_FLOATS = 2**25  # numbers of a step that are in memory together: 128 MiB
_SPARE = 4  # prefixes that are kept, for each record
_REPEATED = 4  # places to which a first token is followed that repeats itself: it reads the same at each
_SKETCH = 2**18  # values of each gradient by which leaves are chosen
_ROWS = 2**13  # tokens whose inputs are looked at together
_TINY = 1e-30

Record = tuple[int, ...]
Judged = tuple[Record, float]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A search for all records of a batch.

    Attributes:
        probe: base and adapter.
        spans: what the update shows of its inputs.
        tokens: ids of the tokens that may be in the batch.
        records: number of records.
        longest: tokens of the longest record.
    """

    probe: Probe = field(repr=False)
    spans: CompleteSpans = field(repr=False)
    tokens: Record
    records: int
    longest: int

    @classmethod
    def of(cls, view: View, probe: Probe, longest: int) -> PrefixTree | None:
        """Of a view with exact token inputs; None where its row spaces are not complete."""
        known = view.knowledge
        spans = None if known.approximation else CompleteSpans.of(view.values, probe, known.readers)
        if spans is None:
            return None
        return cls(probe, spans, _tokens(spans, known.inputs), view.records, longest)

    def leaves(self, meter: Meter) -> list[Record]:
        """Whole records by how well they lie inside, the best first.

        Args:
            meter: counts one step for each token by which the prefixes grow.
        """
        alive, ended = self._starts(meter), list[Judged]()
        end = () if self.probe.end is None else (self.probe.end,)
        while alive and meter.step():
            longer = self._grown(alive, meter)
            grown = {path[:-1] for path, _ in longer if not _repeats(path)}
            ended += [judged for judged in alive if judged[0] not in grown and not _repeats(judged[0])]
            alive = sorted(longer, key=lambda judged: judged[1])[: _SPARE * self.records]
            if alive and len(alive[0][0]) + len(end) >= self.longest:
                ended += [judged for judged in alive if not _repeats(judged[0])]
                break
        best = sorted(ended, key=lambda judged: judged[1])[: _SPARE * self.records]
        return [(*path, *end) for path, _ in best]

    def _starts(self, meter: Meter) -> list[Judged]:
        """What leads every record, or each token whose inputs at the first place lie inside."""
        begin = self.probe.frame.begin
        if begin:
            return [(begin, 0.0)]
        span, (vocabulary, width) = self.spans.later[0], self.probe.head_VD.shape
        every, near = torch.arange(vocabulary)[:, None], list[int]()
        for part in meter.parts(
            vocabulary, max(_FLOATS // (16 * width), 1)
        ):  # only as far as the first module
            new = self.probe.next_inputs(every[part, :0], every[part], [span.module])
            near += every[part][span.outside(new[span.module]) < INSIDE].tolist()
        return self._inside([()], tuple(near)) if near else []

    def _grown(self, alive: Sequence[Judged], meter: Meter) -> list[Judged]:
        """Every prefix with each token that lies inside after it; in parts, so that memory is bounded."""
        paths = [path for path, _ in alive]
        row = len(paths[0]) + len(self.tokens)
        read = sum(span.width for span in self.spans.later) + 8 * self.probe.head_VD.shape[1]
        parts = meter.parts(len(paths), max(_FLOATS // (row * (read + 16 * row)), 1))
        longer = chain.from_iterable(self._inside(paths[part], self.tokens) for part in parts)
        return [judged for judged in longer if not _repeats(judged[0]) or len(judged[0]) <= _REPEATED]

    def _inside(self, paths: Sequence[Record], tokens: Record) -> list[Judged]:
        """Prefixes of one length, longer by each of the tokens that most spaces hold after it."""
        proposals = torch.tensor([tokens] * len(paths))
        names = list(dict.fromkeys(span.module for span in self.spans.later))
        new = self.probe.next_inputs(torch.tensor(paths, dtype=torch.int64), proposals, names)
        sines = torch.stack([span.outside(new[span.module]) for span in self.spans.later]).quantile(
            0.5, dim=0
        )
        places = torch.nonzero(sines < INSIDE).tolist()
        return [((*paths[row], tokens[column]), float(sines[row, column])) for row, column in places]


def _tokens(spans: CompleteSpans, table: Matrix) -> Record:
    """Tokens whose inputs lie in the spaces of the modules that read tokens."""
    parts: list[torch.Tensor] = []
    for start in range(0, len(table), _ROWS):
        x = torch.from_numpy(np.asarray(table[start : start + _ROWS], np.float32))
        parts.append(torch.stack([span.outside(x) for span in spans.tokens]).amin(dim=0))
    return tuple(torch.nonzero(torch.cat(parts) < _TOKEN)[:, 0].tolist())


def _repeats(path: Record) -> bool:
    """Whether a path is one token again and again: as it attends to itself alone, it looks like its first."""
    return len(path) > 1 and len(set(path)) == 1


def chosen(
    leaves: Sequence[Record],
    records: int,
    observed: FloatVector,
    gradient: Callable[[Record], FloatVector],
    is_raw: bool,
    is_weighted: bool = True,
) -> list[Record]:
    """At most so many records whose gradients add up to what was observed, each as often as it fits.

    By non-negative least squares on some of the values.

    Args:
        leaves: records that may be there.
        records: how many there are.
        observed: the mean of their gradients, or a step against it.
        gradient: of one record.
        is_raw: whether the length of `observed` is that of the mean.
        is_weighted: whether it is known how much each token counts; if not, gradients say less than the
            spans, so each leaf is taken where there are no more of them than records.
    """
    if not leaves:
        return []
    some = slice(None, None, max(len(observed) // _SKETCH, 1))
    columns = np.stack([*(gradient(leaf)[some] / records for leaf in leaves), observed[some]], axis=1)
    small = np.asarray(np.linalg.qr(columns.astype(np.float64), mode="r"))
    shares = nnls(small[:, :-1], small[:, -1])[0]
    if not is_raw:
        shares *= records / max(float(shares.sum()), _TINY)
    counts = np.rint(shares).astype(int).clip(min=not is_weighted and len(leaves) <= records)
    order = np.argsort(-shares, kind="stable")
    return [leaf for place in order for leaf in [leaves[place]] * int(counts[place])][:records]
