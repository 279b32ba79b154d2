"""Aggregation of methods that send one flat vector: a weighted mean in a fixed order.

For methods whose trait ``linear`` holds the mean of the vectors is exactly the mean of the effective
weights. For ``lora/naive`` it is not, and `product_error` measures by how much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.layout import FloatVector, Layout

Contribution = tuple[str, float, Decoded]
Wide = NDArray[np.float64]


def weighted_sum(size: int, contributions: Iterable[Contribution]) -> tuple[FloatVector, float]:
    """The sum of weight times values, float32, shape ``(size,)``, and the sum of the weights.

    Contributions are (node, weight, values) in strictly rising order of node. They are read one at a time and
    added where they are not zero: memory is one vector and one envelope's values, whatever the number of
    nodes. The same contributions give the same bits; `Decoded.add_to` says when the sum is exact.

    Raises:
        ExchangeError: nothing to aggregate, a bad weight, a wrong order or a vector that does not fit.
    """
    total, weights = np.zeros(size, np.float32), 0.0
    last: str | None = None
    for node, weight, values in contributions:
        last = _checked(node, weight, last)
        if values.layout.size != size:
            raise ExchangeError(f"expected {size} values, got {values.layout.size}")
        values.add_to(total, weight)
        weights += weight
        del values  # before the next one is decoded
    if not weights:
        raise ExchangeError("there is nothing to aggregate: no node contributed")
    return total, weights


def mean_step(size: int, contributions: Iterable[Contribution]) -> Wide:
    """The weighted mean, float64, shape ``(size,)``; see `weighted_sum`."""
    total, weights = weighted_sum(size, contributions)
    return total.astype(np.float64) / weights


def normalised(contributions: Iterable[Contribution]) -> list[Contribution]:
    """The contributions with weights that sum to 1, checked as in `mean_step`."""
    checked = list(contributions)
    if not checked:
        raise ExchangeError("there is nothing to aggregate: no node contributed")
    last: str | None = None
    for node, weight, _ in checked:
        last = _checked(node, weight, last)
    total = sum(weight for _, weight, _ in checked)
    return [(node, weight / total, values) for node, weight, values in checked]


def product_error(layout: Layout, start: FloatVector, contributions: Iterable[Contribution]) -> float:
    """How far naive averaging of A and B is from the mean of the nodes' products in this round.

    Relative Frobenius norm over all modules, ``|mean(B) mean(A) - mean(B A)| / |mean(B A)|``, computed
    from factors only: no matrix of the size of a weight is formed.
    """
    changes = normalised(contributions)
    parts = [(weight, layout.split(start + delta.dense())) for _, weight, delta in changes]
    off = whole = 0.0
    for name in (name for name in layout.names if name.endswith(".lora_A.weight")):
        partner = name.removesuffix("lora_A.weight") + "lora_B.weight"
        products = [(w, t[partner].astype(np.float64), t[name].astype(np.float64)) for w, t in parts]
        mean_b = np.sum([w * b for w, b, _ in products], axis=0)
        mean_a = np.sum([w * a for w, _, a in products], axis=0)
        true_b = [w * b for w, b, _ in products]
        true_a = [a for _, _, a in products]
        off += _product_norm([mean_b, *(-b for b in true_b)], [mean_a, *true_a]) ** 2
        whole += _product_norm(true_b, true_a) ** 2
    return float(np.sqrt(off / whole)) if whole else 0.0


def naive_warning(error: float) -> str:
    """What to tell people about a measured `product_error`."""
    return (
        f"aggregation 'naive' averages A and B apart: this round its weight change is off by {error:.1%} of "
        "the true mean; use 'frozen_a' (exact, half the bytes), 'stack' or 'reproject'"
    )


def _product_norm(b: Sequence[Wide], a: Sequence[Wide]) -> float:
    """Frobenius norm of ``[b_1 b_2 …] @ [a_1; a_2; …]``."""
    left = np.linalg.qr(np.concatenate(b, axis=1)).R
    right = np.linalg.qr(np.concatenate(a).T).R
    return float(np.linalg.norm(left @ right.T))


def _checked(node: str, weight: float, last: str | None) -> str:
    """The node, if it comes after the last one and its weight counts."""
    if last is not None and node <= last:
        raise ExchangeError(f"contributions must come in rising order of node; {node!r} came after {last!r}")
    if not np.isfinite(weight) or weight <= 0:
        raise ExchangeError(f"the weight of {node!r} is {weight}; it must be positive")
    return node
