"""Beam search over records: language prior, token bag, matched filter and span check in one score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fedpeft_attacks.sequences import Bag
from fedpeft_attacks.sequences.matched import Filter
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.spans import Spans
from fedpeft_attacks.work import Meter

CERTAIN = 1e-5
"""Share of the observed energy below which nothing is left but rounding."""

_FIRST = 256  # first tokens that are looked at where none is known
_FLOATS = 2**26  # numbers of a step that are in memory together: 256 MiB
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
        prior_V: log chance of each token in any text, shape ``(V,)``; for a first token that is not known.
    """

    probe: Probe = field(repr=False)
    filter: Filter | None
    spans: Spans
    bag_V: torch.Tensor = field(repr=False)
    width: int
    proposals: int
    longest: int
    prior_V: torch.Tensor = field(repr=False)

    def run(self, left: Callable[[Path], float], meter: Meter) -> tuple[Path, float]:
        """The record that leaves least, and what it leaves.

        The end token is read by no module, so the best partial record of every length is tried with it.

        Args:
            left: share of the observed energy that a record leaves; as good as 0 ends the search.
            meter: counts one step for each token by which the partial records grow.
        """
        alive = self.starts()
        best, shortest = (alive[0], 1.0), len(alive[0].tokens) + 1
        end, frame = self.probe.end, self.probe.frame
        for length in range(shortest, self.longest):
            if not meter.step():
                break
            alive = self._step(alive, meter)
            ended = alive[0] if end is None else Path((*alive[0].tokens, end), alive[0].score)
            if (share := left(ended)) < best[1] or length == shortest:
                best = ended, share
            is_late = length > len(best[0].tokens) + _PATIENCE and frame.prompt_weight > 0
            if best[1] < CERTAIN or is_late:  # a prompt without weight shows nothing before its answer
                break
        return best

    def starts(self) -> list[Path]:
        """Records of the tokens that lead every one, or of one token each where none does.

        What later layers read at the first place depends on its token alone, so the spans tell it.
        """
        frame = self.probe.frame
        if frame.begin:
            return [Path(frame.begin, 0.0)]
        gains = self.bag_V + self.prior_V
        gains[list(frame.head[:1])] = 0.0
        if frame.end is not None:
            gains[frame.end] = -torch.inf
        scores, tokens = gains.topk(min(_FIRST, len(gains)))
        if self.spans.bases:
            read = self.probe.read(tokens[:, None], list(self.spans.bases)).inputs
            inputs = {name: value.transpose(0, 1) for name, value in read.items()}
            shares = self.spans.outside({name: x[:, :0] for name, x in inputs.items()}, inputs)
            scores = scores + self.spans.evidence(shares)[0]
        best, places = scores.topk(min(self.width * _EARLY, len(scores)))
        pairs = zip(tokens[places].tolist(), best.tolist(), strict=True)
        return [Path((token,), score) for token, score in pairs]

    def _step(self, paths: list[Path], meter: Meter) -> list[Path]:
        """Extend paths of one length by one token; so many at a time as memory is stated for."""
        before = torch.tensor([path.score for path in paths])
        parts = [self._gains(paths[part]) for part in meter.parts(len(paths), self._rows(paths))]
        if not parts:
            return paths
        gains, proposals, _ = zip(*parts, strict=True)
        shares = {name: torch.cat([part[2][name] for part in parts]) for name in self.spans.bases}
        scores = torch.cat(gains) + self.spans.evidence(shares)
        scores = scores + before[: len(scores), None]
        width = self.width * max(1, _EARLY // len(paths[0].tokens))
        tokens = torch.cat(proposals)
        best, flat = scores.flatten().topk(min(width, scores.numel()))
        places = [divmod(place, scores.shape[1]) for place in flat.tolist()]
        return [
            Path((*paths[row].tokens, int(tokens[row, column])), score)
            for (row, column), score in zip(places, best.tolist(), strict=True)
        ]

    def _rows(self, paths: list[Path]) -> int:
        """Paths that are looked at together: logits, slopes and what modules read are large."""
        each = 8 * len(self.bag_V)
        if self.spans.bases:
            widths = sum(basis.shape[1] for basis in self.spans.bases.values())
            each += widths * (len(paths[0].tokens) + self.proposals)
        return max(_FLOATS // each, 1)

    def _gains(self, paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """The best continuations of each path by all but the spans; which they are; what the spans say.

        Shape ``(B, P)`` each.
        """
        ids, names = torch.tensor([path.tokens for path in paths]), list(self.spans.bases)
        read = self.probe.read(ids, names)
        gains = read.logits.log_softmax(dim=-1) + self.bag_V
        if self.probe.end is not None:
            gains[:, self.probe.end] = -torch.inf
        if self.filter is not None:
            gains = gains + self.filter.last(ids, read.logits)
        gains, proposals = gains.topk(min(self.proposals, gains.shape[1]))
        if not names:
            return gains, proposals, {}
        return gains, proposals, self.spans.outside(read.inputs, self.probe.ahead(read, proposals, names))


def bag_weights(bag: Bag, vocabulary: int) -> torch.Tensor:
    """Log weight of each token: zero inside of what the bag claims, minus the penalty outside, ``(V,)``."""
    weights = torch.zeros(vocabulary)
    if bag.claimed:
        weights -= bag.penalty
        weights[list(bag.ranking[: bag.claimed])] = 0.0
    return weights
