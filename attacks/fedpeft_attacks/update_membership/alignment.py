"""How well a record's own gradient fits an observed update.

Training on a record moves the values against its gradient, so an update points away from the gradients of the
records behind it more than from others. Two things blur this: values differ in how large their gradients are,
so gradients are divided by the root mean square that gradients of such records have, as Adam divides its
steps; and all records of a kind share most of their gradient, so the mean and the leading directions of
auxiliary gradients are projected out of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.memory.statistics import Floats

COMMON = 32
"""Leading directions that are projected out beside the mean, at most half as many as there are gradients."""

_LEAST = 1e-9

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Preconditioner:
    """What auxiliary gradients say of the gradients of such records.

    Attributes:
        scale: root mean square of each value, float32, shape ``(D,)``.
        basis: orthonormal rows that span what such records share, once scaled, shape ``(k, D)``.
    """

    scale: FloatVector
    basis: Matrix

    @classmethod
    def of(cls, gradients: Matrix) -> Preconditioner:
        """From auxiliary gradients, shape ``(n, D)``; they are overwritten."""
        scale = np.sqrt(np.mean(np.square(gradients), axis=0)) + np.float32(_LEAST)
        gradients /= scale
        mean = unit(gradients.mean(axis=0))
        gradients -= np.outer(gradients @ mean, mean)
        gradients /= np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), np.float32(1e-12))
        values, vectors = np.linalg.eigh((gradients @ gradients.T).astype(np.float64))
        count = min(COMMON, len(gradients) // 2, int((values > 1e-6 * max(values[-1], _LEAST)).sum()))
        leading = vectors[:, len(values) - count :] / np.sqrt(values[len(values) - count :])
        return cls(scale, np.vstack([mean, leading.T.astype(np.float32) @ gradients]))

    def unshared(self, values: FloatVector) -> FloatVector:
        """Scaled values without what such records share, of length one; zero stays zero."""
        return unit(values - self.basis.T @ (self.basis @ values))


@dataclass(frozen=True)
class Alignment:
    """The score of records against some observed updates.

    Attributes:
        preconditioner: what is known of gradients; None: plain cosines, with too few auxiliary records.
        observed: observed values by column, of length one, shape ``(columns, D)``.
        unshared: the same, scaled and less what records share, of length one.
    """

    preconditioner: Preconditioner | None
    observed: Matrix
    unshared: Matrix

    @classmethod
    def of(
        cls, observed: Matrix, preconditioner: Preconditioner | None, of_gradients: Sequence[bool]
    ) -> Alignment:
        """Ready to score records.

        Args:
            observed: by column, each a gradient or the negative of an update, shape ``(columns, D)``.
            preconditioner: what is known of gradients; None: nothing.
            of_gradients: which columns are sums of gradients, and are scaled as those of records; the rest
                Adam has scaled.
        """
        plain = np.stack([unit(values) for values in observed])
        if preconditioner is None:
            return cls(None, plain, plain)
        scales = (preconditioner.scale if raw else np.float32(1) for raw in of_gradients)
        scaled = [values / scale for values, scale in zip(plain, scales, strict=True)]
        return cls(preconditioner, plain, np.stack([preconditioner.unshared(values) for values in scaled]))

    def __call__(self, gradient: FloatVector) -> Floats:
        """How well a record's gradient fits each column, from -1 to 1, float64, shape ``(columns,)``."""
        known = self.preconditioner
        aligned = unit(gradient) if known is None else known.unshared(gradient / known.scale)
        return (self.unshared @ aligned).astype(np.float64)

    def cosine(self, gradient: FloatVector) -> Floats:
        """The plain cosine of a record's gradient with each column, float64, shape ``(columns,)``."""
        return (self.observed @ unit(gradient)).astype(np.float64)


def unit(values: NDArray[Any]) -> NDArray[Any]:
    """Values of length one; zero stays zero."""
    return values / max(float(np.linalg.norm(values)), 1e-12)
