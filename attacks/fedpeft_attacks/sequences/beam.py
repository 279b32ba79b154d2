"""Beam search over records: language prior, token bag, matched filter and span check in one score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fedpeft_attacks.sequences import Bag
from fedpeft_attacks.sequences.matched import Filter
from fedpeft_attacks.sequences.probing import Prefixes, Probe
from fedpeft_attacks.sequences.spans import Spans
from fedpeft_attacks.work import Meter

CERTAIN = 1e-5
"""Share of the observed energy below which nothing is left but rounding."""

_PATIENCE = 24  # tokens that a search goes on after its best record
_EARLY = 16  # tokens up to which more partial records are kept, as little is known of them


@dataclass(frozen=True)
class Path:
    """A partial record and its score in nats."""

    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True, eq=False)
class Search:
    """What a beam looks at.

    Attributes:
        probe: base and adapter.
        filter: the matched filter; None leaves the update out but for `spans` and `bag_V`.
        spans: row spaces, possibly none.
        bag_V: log weight of each token, shape ``(V,)``.
        width: partial records that are kept.
        proposals: continuations of each that the span check looks at.
        longest: tokens of the longest record.
    """

    probe: Probe = field(repr=False)
    filter: Filter | None
    spans: Spans
    bag_V: torch.Tensor = field(repr=False)
    width: int
    proposals: int
    longest: int

    def run(self, left: Callable[[Path], float], meter: Meter) -> tuple[Path, float]:
        """The record that leaves least, and what it leaves.

        The end token is read by no module, so the best partial record of every length is tried with it.

        Args:
            left: share of the observed energy that a record leaves; as good as 0 ends the search.
            meter: counts one step for each token by which the partial records grow.
        """
        alive, best = [Path((self.probe.begin,), 0.0)], (Path((self.probe.begin,), 0.0), 1.0)
        end = self.probe.end
        for length in range(2, self.longest):
            if not meter.step():
                break
            alive = self._step(alive)
            ended = alive[0] if end is None else Path((*alive[0].tokens, end), alive[0].score)
            if (share := left(ended)) < best[1] or length == 2:
                best = ended, share
            if best[1] < CERTAIN or length > len(best[0].tokens) + _PATIENCE:
                break
        return best

    def _step(self, paths: list[Path]) -> list[Path]:
        """Extend paths of one length by one token."""
        ids = torch.tensor([path.tokens for path in paths])
        read = self.probe.read(ids, list(self.spans.bases))
        gains = read.logits.log_softmax(dim=-1) + self.bag_V
        if self.probe.end is not None:
            gains[:, self.probe.end] = -torch.inf
        if self.filter is not None:
            gains = gains + self.filter.last(ids, read.logits)
        gains, proposals = gains.topk(min(self.proposals, gains.shape[1]))
        before = torch.tensor([path.score for path in paths])
        scores = gains + self._evidence(read, proposals) + before[:, None]
        width = self.width * max(1, _EARLY // ids.shape[1])
        best, flat = scores.flatten().topk(min(width, scores.numel()))
        places = [divmod(place, scores.shape[1]) for place in flat.tolist()]
        return [
            Path((*paths[row].tokens, int(proposals[row, column])), score)
            for (row, column), score in zip(places, best.tolist(), strict=True)
        ]

    def _evidence(self, read: Prefixes, proposals: torch.Tensor) -> torch.Tensor:
        """What the span check says of each proposal, shape ``(B, P)``."""
        if not self.spans.bases:
            return torch.zeros(proposals.shape)
        return self.spans.evidence(read.inputs, self.probe.ahead(read, proposals, list(self.spans.bases)))


def bag_weights(bag: Bag, vocabulary: int) -> torch.Tensor:
    """Log weight of each token: zero inside of what the bag claims, minus the penalty outside, ``(V,)``."""
    weights = torch.zeros(vocabulary)
    if bag.claimed:
        weights -= bag.penalty
        weights[list(bag.ranking[: bag.claimed])] = 0.0
    return weights
