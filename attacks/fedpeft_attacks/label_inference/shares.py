"""The shares of the classes behind an update, from the mean gradients of the classes.

An update is nearly a sum of the gradients of its records, so it is nearly a sum of class means, each as often
as the class occurs: non-negative least squares gives the counts. Adam divides by the root mean square of the
gradients, and so are the class means where nodes train with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fedpeft.exchange.layout import FloatVector
from fedpeft_attacks.memory.statistics import Floats
from fedpeft_attacks.update_membership.alignment import Matrix

_LEAST = 1e-9


@dataclass(frozen=True)
class ClassGradients:
    """What auxiliary records say of the gradients of each class.

    Attributes:
        scale: root mean square of each value over all records, float32, shape ``(D,)``.
        rows: orthonormal rows that span the class means, shape ``(classes, D)``.
        means: the scaled class means in that basis, float64, shape ``(classes, classes)``.
    """

    scale: FloatVector = field(repr=False)
    rows: Matrix = field(repr=False)
    means: Floats = field(repr=False)

    @classmethod
    def of(cls, gradients: Matrix, indices: NDArray[np.int64]) -> ClassGradients:
        """From the gradients of records, shape ``(n, D)``, and the class of each, shape ``(n,)``."""
        scale = np.sqrt(np.mean(np.square(gradients), axis=0)) + np.float32(_LEAST)
        classes = range(int(indices.max()) + 1)
        means = np.stack([gradients[indices == place].mean(axis=0) / scale for place in classes], axis=1)
        basis, triangle = np.linalg.qr(means)
        return cls(scale, basis.T, triangle.astype(np.float64))

    def shares(self, observed: FloatVector, *, of_gradients: bool) -> Floats:
        """Estimated share of each class, float64, shape ``(classes,)``; even where nothing can be read.

        Args:
            observed: a gradient, or the negative of an update, shape ``(D,)``.
            of_gradients: whether it is a sum of gradients, not of Adam's steps.
        """
        scaled = observed / self.scale if of_gradients else observed
        weights, _ = nnls(self.means, (self.rows @ scaled).astype(np.float64))
        total = weights.sum()
        return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def overlap(estimate: Floats, truth: Floats) -> float:
    """One minus the total variation of two distributions: the share of records whose class is accounted for.

    >>> overlap(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.25, 0.25]))
    0.75
    """
    return float(np.minimum(estimate, truth).sum())
