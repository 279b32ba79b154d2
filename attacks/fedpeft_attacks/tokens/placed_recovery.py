"""Token attacks on bases with absolute positions: which tokens are in a batch, and where they stand.

With the inputs ``(E[v] + P[p]) s + b`` of `placed_inputs`, rows of an update are combinations of pairs of
token and place. Taken away from the span of the places and b, they are combinations of the few ``E[v]``
alone, and the solvers for bases without positions read the tokens. Each row then holds the same coefficient
on a token as on its place, which puts the tokens of a record in order. Padding has no part in an update: the
platform pads on the right, and masks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft_attacks.tokens.blocks import Block, Matrix, row_space, unit_rows
from fedpeft_attacks.tokens.matching_pursuit import matching_pursuit
from fedpeft_attacks.tokens.observations import observed_rows
from fedpeft_attacks.tokens.placed_inputs import PlacedInputs
from fedpeft_attacks.tokens.placed_order import ordered
from fedpeft_attacks.tokens.span_check import INSIDE
from fedpeft_attacks.tokens.sparse_bayes import sparse_bayes
from fedpeft_attacks.tokens.sparse_recovery import Ranking, note_of
from fedpeft_attacks.views import Guess, NotApplicable, View
from fedpeft_attacks.work import Meter

_EXPLAINED = 1e-2
_SHARES = (1 / 3, 1 / 6, 1 / 2, 1 / 12)  # of the width, which places and tokens have to share
_TINY = 1e-30

Record = tuple[int, ...]
Reading = tuple[Ranking, Record]
"""Tokens, not all of them, and the one record of the batch in order; empty: it is not known."""


@dataclass(frozen=True, eq=False)
class PlacedBlock:
    """Rows that combine a few of the inputs, shape ``(rows, width)``."""

    rows: Matrix
    inputs: PlacedInputs

    @property
    def width(self) -> int:
        """Number of coordinates of a row."""
        return self.rows.shape[1]

    @property
    def places(self) -> NDArray[np.float32]:
        """The first places, as many as leave space for tokens, shape ``(count, width)``."""
        return self.inputs.places[: max(int(_SHARES[0] * self.width), 1)]

    def shares(self) -> NDArray[np.float32]:
        """Squared cosine of each pair with the row space, or its share of the energy where that is full."""
        basis = row_space(self.rows)
        if len(basis) == self.width:
            rows = unit_rows(np.asarray(self.rows, np.float64))
            powers, turns = np.linalg.eigh(rows.T @ rows / max(float((rows**2).sum()), _TINY))
            basis = turns.T * np.sqrt(np.clip(powers, 0.0, None))[:, None]
        return self.inputs.insides(basis)

    def parts(self) -> Block:
        """The same as combinations of tokens, places and the bias, in this order."""
        inputs = self.inputs
        return Block(self.rows, np.concatenate([inputs.tokens, self.places, inputs.bias[None]]))

    def without_places(self, length: int) -> Block:
        """The same away from the span of the first places and the bias: combinations of tokens alone."""
        known = np.vstack([self.inputs.places[:length], self.inputs.bias]).astype(np.float64)
        turns = np.linalg.qr(known.T, mode="complete")[0][:, len(known) :]
        return Block(self.rows @ turns, self.inputs.tokens @ turns.astype(np.float32))


def read_places(view: View, is_check: bool, meter: Meter) -> Guess | NotApplicable:
    """Read a view whose inputs depend on the place.

    Args:
        view: with ``knowledge.placed``; places beyond the longest record are known to be empty.
        is_check: whether the span check alone speaks.
        meter: counts a step for each check, choice and pass of the solvers.

    Returns:
        All tokens; where a single record was explained whole, that record in order as well.
    """
    placed, seen, frame = view.knowledge.placed, observed_rows(view), view.knowledge.frame
    if placed is None:
        return NotApplicable("what this base reads does not depend on the place")
    if isinstance(seen, NotApplicable):
        return seen
    placed = placed if frame is None else placed.up_to(frame.longest)
    blocks = [PlacedBlock(rows, placed if by is None else placed.projected(by)) for rows, by in seen]
    reading = _checked(blocks, meter) if is_check else _pursued(blocks, view, meter)
    ranking, record = reading or (_weighed(blocks, view, meter), ())
    special = view.knowledge.special
    certain = sum(token not in special for token in ranking.tokens[: ranking.claimed])
    tokens = [token for token in ranking.tokens if token not in special]
    sequences = (record,) if record and view.records == 1 else ()
    sure = (True,) * len(sequences)
    return Guess(tokens, certain, ranking.method, sequences, sure, meter.work, ranking.note)


def _checked(blocks: Sequence[PlacedBlock], meter: Meter) -> Reading:
    """Pairs inside the row space."""
    meter.step()
    shares = np.mean([block.shares() for block in blocks], axis=0)
    order = np.argsort(-shares, axis=None, kind="stable")
    is_full = all(len(row_space(block.rows)) == block.width for block in blocks)
    inside = 0 if is_full else int((shares > 1.0 - INSIDE**2).sum())
    tokens, places = np.divmod(order, shares.shape[1])
    claimed, ranking = (list(dict.fromkeys(part.tolist())) for part in (tokens[:inside], tokens))
    read = Ranking(ranking, len(claimed), "span check over places")
    return read, _in_order(tokens[:inside], places[:inside])


def _in_order(tokens: NDArray[np.integer], places: NDArray[np.integer]) -> Record:
    """Tokens by place; none where a place holds two or is left out."""
    order = np.argsort(places, kind="stable")
    if places[order].tolist() != list(range(len(places))):
        return ()
    return tuple(tokens[order].tolist())


def _pursued(blocks: Sequence[PlacedBlock], view: View, meter: Meter) -> Reading | None:
    """The tokens that explain all rows away from the places, for the first length that lets them."""
    tokens, block = view.tokens + len(view.knowledge.special), blocks[0]
    for length in _lengths(blocks, tokens):
        telling = [block.without_places(length) for block in blocks]
        telling = [block for block in telling if not block.is_full]
        pursuit = matching_pursuit(telling, tokens, meter) if telling else None
        if pursuit is not None and pursuit.unexplained < _EXPLAINED:
            order = ordered(block.rows, block.inputs, pursuit.chosen, length, view.records)
            ranking = list(dict.fromkeys([*order.tokens, *pursuit.ranking]))
            return Ranking(ranking, len(order.tokens), "matching pursuit beside places"), order.record
    return None


def _lengths(blocks: Sequence[PlacedBlock], tokens: int) -> list[int]:
    """Lengths of the longest record to try, where they leave space for so many tokens beside the places."""
    width, places = min(block.width for block in blocks), len(blocks[0].inputs.places)
    lengths = dict.fromkeys(min(int(share * width), places) for share in _SHARES)
    return [length for length in lengths if length + 1 + tokens < width]


def _weighed(blocks: Sequence[PlacedBlock], view: View, meter: Meter) -> Ranking:
    """Sparse Bayesian recovery: each row is a sum over tokens, places and the bias."""
    prior, count = view.knowledge.prior, len(blocks[0].places)
    beside = np.append(np.full(count, 1 / count), 1.0)
    ranked = sparse_bayes([block.parts() for block in blocks], np.concatenate([prior, beside]), meter)
    tokens = [part for part in ranked.ranking if part < len(prior)]
    return Ranking(tokens, view.tokens, "sparse Bayesian recovery beside places", note_of(ranked))
