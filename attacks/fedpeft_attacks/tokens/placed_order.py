"""The order of one record, from the coefficients that each observed row has on its tokens and places."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fedpeft_attacks.tokens.blocks import Matrix, unit_rows
from fedpeft_attacks.tokens.placed_inputs import PlacedInputs

_NOISE = 1e-4
_HALF = 0.5
_EXPLAINED = 1e-2
_TINY = 1e-30


@dataclass(frozen=True)
class Ordered:
    """Tokens with weight in the rows, and the record that they make.

    Attributes:
        tokens: token ids whose coefficients are no rounding, in the order in which they were chosen.
        record: of one record its tokens in order; empty where they leave a part of the rows unexplained.
    """

    tokens: list[int]
    record: tuple[int, ...] = ()


def ordered(rows: Matrix, inputs: PlacedInputs, chosen: list[int], length: int, records: int) -> Ordered:
    """Drop chosen tokens that carry nothing and, of one record, put the others in order.

    A token that stands at several places has the sum of their coefficients.

    Args:
        rows: observed, shape ``(rows, width)``.
        inputs: what the rows combine.
        chosen: token ids that explain the rows beside the places.
        length: places that were taken into account.
        records: how many records are in the batch.
    """
    scaled = np.asarray(unit_rows(np.asarray(rows, np.float64)), np.float64)
    length = _shortest(scaled, inputs, chosen, length)
    both = _coefficients(scaled, _parts(inputs, chosen, length))
    of_tokens, of_places = both[: len(chosen)], both[len(chosen) : -1]
    carry = np.flatnonzero(_lengths(of_tokens) > _NOISE)
    tokens = [chosen[place] for place in carry]
    if records != 1 or not length or not tokens:
        return Ordered(tokens)
    weights = np.array([_weights(of_places, part) for part in of_tokens[carry]])
    record = [tokens[place] for place in weights.argmax(axis=0)]
    is_sure = (
        bool((weights.max(axis=0) > _HALF).all())
        and _unexplained(scaled, inputs.rows(np.array(record), np.arange(length))) < _EXPLAINED
    )
    return Ordered(tokens, tuple(record) if is_sure else ())


def _weights(places: NDArray[np.float64], token: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often a token stands at each place, near 0 or 1 where that can be said, shape ``(places,)``."""
    try:
        return nnls(places.T, token)[0]
    except RuntimeError:  # it did not converge
        return np.zeros(len(places))


def _shortest(rows: NDArray[np.float64], inputs: PlacedInputs, chosen: list[int], length: int) -> int:
    """The fewest first places that explain the rows as well as so many."""
    enough = _unexplained(rows, _parts(inputs, chosen, length)) + _NOISE
    return bisect_left(
        range(length), True, key=lambda count: _unexplained(rows, _parts(inputs, chosen, count)) <= enough
    )


def _parts(inputs: PlacedInputs, chosen: list[int], length: int) -> NDArray[np.float32]:
    return np.concatenate([inputs.tokens[chosen], inputs.places[:length], inputs.bias[None]])


def _coefficients(rows: NDArray[np.float64], atoms: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the combinations of atoms nearest to the rows, shape ``(atoms, rows)``."""
    return np.asarray(np.linalg.lstsq(atoms.astype(np.float64).T, rows.T, rcond=None)[0], np.float64)


def _unexplained(rows: NDArray[np.float64], atoms: NDArray[np.float32]) -> float:
    """Length of what atoms leave of the rows, relative to theirs."""
    left = rows - _coefficients(rows, atoms).T @ atoms
    return float(np.linalg.norm(left) / max(float(np.linalg.norm(rows)), _TINY))


def _lengths(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of each row, relative to the longest."""
    lengths = np.linalg.norm(parts, axis=1)
    return lengths / max(float(lengths.max()), _TINY)
