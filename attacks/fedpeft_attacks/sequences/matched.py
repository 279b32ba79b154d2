"""The matched filter: which next token does a prefix have, judged by the observed values alone.

A causal base makes the gradient of a batch a sum over predicted tokens, sum_t w a_t, and a_t, the gradient of
the loss of token t, depends on nothing but the prefix and that token. So a prefix shows its own continuation:
<a(prefix, y), C^-1 v> is large for the y that was there, whatever stands in the other records and later. All
y of a prefix cost two passes, as the product is a slope of the loss along the direction C^-1 v. C is the
covariance of such gradients over texts of the base, one Kronecker product per tensor (Martens and Grosse
2015); noise and scale are calibrated on the same texts. It needs no rank and no exact values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.progress_reports import each
from fedpeft.rng import stream
from fedpeft_attacks.sequences.probing import Probe, Records
from fedpeft_attacks.views import Start

Matrix = NDArray[np.float32]

_TEXTS, _LENGTH, _CALIBRATION = 32, 40, 12
_DAMPING = 0.03
_FREEDOM = 4.0
_LEAST, _OUTLIER = 1e-6, 50.0
_TINY = 1e-30


@dataclass(frozen=True)
class Side:
    """Damped inverse of a second moment, scaled to a mean eigenvalue of one: ``(I - F F') / damping``.

    Attributes:
        factor: F, float32, shape ``(size, k)`` with k at most the number of vectors behind the moment. A
            matrix of the whole size for every tensor takes gigabytes on a real base.
    """

    factor: NDArray[np.float32] = field(repr=False)

    @classmethod
    def of(cls, vectors: Matrix) -> Side:
        """Of the second moment of the columns, shape ``(size, n)``."""
        size, count = vectors.shape
        energy = max(float(np.square(vectors, dtype=np.float64).sum()), _TINY)
        scaled = vectors * np.float32((_DAMPING * energy / size) ** -0.5)
        if count < size:
            root = np.linalg.cholesky(scaled.T @ scaled + np.eye(count, dtype=np.float32))
            return cls(solve_triangular(root, scaled.T, lower=True).T)
        powers, turns = np.linalg.eigh(scaled @ scaled.T)
        return cls(turns * np.sqrt(powers.clip(min=0.0) / (1.0 + powers.clip(min=0.0))))

    def __matmul__(self, other: NDArray[np.floating]) -> NDArray[np.floating]:
        """The inverse times a matrix, shape ``(size, m)``."""
        return (other - self.factor @ (self.factor.T @ other)) / _DAMPING


@dataclass(frozen=True)
class Whitening:
    """Inverse covariance of token gradients, a Kronecker product per tensor.

    Attributes:
        layout: of the values.
        sides: inverse second moments of rows and columns, and the energy that both have, by tensor.
    """

    layout: Layout
    sides: Mapping[str, tuple[Side, Side, float]] = field(repr=False)

    @classmethod
    def of(cls, layout: Layout, gradients: Sequence[FloatVector]) -> Whitening:
        """From gradients of texts, each of shape ``(layout.size,)``."""
        split = [layout.split(gradient) for gradient in gradients]
        sides: dict[str, tuple[Side, Side, float]] = {}
        for name in each(layout.names, "tensor to whiten"):
            parts = [_flat(tensors[name]) for tensors in split]
            wide, tall = np.hstack(parts), np.vstack(parts)
            energy = max(float(np.square(wide, dtype=np.float64).sum()) / len(parts), _TINY)
            sides[name] = (Side.of(wide), Side.of(tall.T), energy)
        return cls(layout, sides)

    def __call__(self, values: FloatVector) -> FloatVector:
        """C^-1 values."""
        tensors: dict[str, NDArray[np.floating]] = {}
        for name, tensor in self.layout.split(values).items():
            rows, columns, energy = self.sides[name]
            whitened = (columns @ (rows @ _flat(tensor)).T).T
            tensors[name] = (whitened / np.float32(energy)).reshape(tensor.shape)
        return self.layout.flatten(tensors)


def _flat(tensor: FloatVector) -> Matrix:
    return np.atleast_2d(tensor).reshape(len(np.atleast_2d(tensor)), -1)


@dataclass(frozen=True, eq=False)
class Null:
    """What token gradients of the base's own texts look like.

    Attributes:
        whitening: inverse covariance of a token's gradient.
        texts: the texts.
        power: mean of ``|a|^2 / |head' u|^2`` over their tokens, with ``u`` the gradient of the logits.
        size: mean length of the gradient of a text.
    """

    whitening: Whitening
    texts: list[list[int]] = field(repr=False)
    power: float
    size: float

    @classmethod
    def of(cls, probe: Probe) -> Null:
        """Sample texts and learn from their gradients; signs drawn per token keep tokens apart."""
        texts = probe.texts(_TEXTS, _LENGTH)
        signs = stream(0, 0, "", "audit-null-signs")
        drawn = [signs.choice([-1.0, 1.0], len(text) - 1).tolist() for text in texts]
        pairs = list(zip(texts, drawn, strict=True))
        gradients = [probe.gradient([text], [part]) for text, part in each(pairs, "gradient of a text")]
        whitening = Whitening.of(probe.attached.layout, gradients)
        energy = sum(float(g @ whitening(g)) for g in gradients)
        size = float(np.mean([np.linalg.norm(probe.gradient([text])) for text in texts[:_CALIBRATION]]))
        pulls = [pulls_of(probe, probe.logits(ids)[:, :-1], ids[:, 1:]) for ids in _rows(texts)]
        return cls(whitening, texts, energy / max(float(torch.cat(pulls, dim=1).sum()), _TINY), size)


_NULLS: WeakKeyDictionary[Start, Null] = WeakKeyDictionary()


def null_of(start: Start, probe: Probe) -> Null:
    """`Null.of`, once per start: all stages of a round have the same."""
    if start not in _NULLS:
        _NULLS[start] = Null.of(probe)
    return _NULLS[start]


def _rows(texts: Records) -> list[torch.Tensor]:
    """Each text in a row of its own, shape ``(1, T)``: the logits of all of them together are too large."""
    return [torch.tensor([text]) for text in texts]


def squared_pull(probe: Probe, logits: torch.Tensor) -> torch.Tensor:
    """``|head' (p - e_y)|^2`` for every y: how hard each token would pull; shape ``(..., V)``."""
    mean = logits.softmax(dim=-1) @ probe.head_VD
    products = mean @ probe.head_VD.T
    return products.mul_(-2).add_((mean**2).sum(-1, keepdim=True)).add_(probe.squares_V)


def pulls_of(probe: Probe, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`squared_pull` of one token at each place, in the shape of the targets."""
    mean = logits.softmax(dim=-1) @ probe.head_VD
    return (mean - probe.head_VD[targets]).square().sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Filter:
    """Log likelihood ratios of every next token, from what is not yet explained.

    Attributes:
        probe: base and adapter.
        null: what other texts look like.
        direction: C^-1 residual.
        weight: factor of one token's gradient in the residual.
        noise: mean of ``ip^2 / |head' u|^2`` on other texts.
    """

    probe: Probe
    null: Null
    direction: FloatVector = field(repr=False)
    weight: float
    noise: float

    @classmethod
    def of(cls, probe: Probe, null: Null, residual: FloatVector, weight: float) -> Filter:
        """Calibrate on texts of the base."""
        direction, parts = null.whitening(residual), list[torch.Tensor]()
        for ids in _rows(null.texts[:_CALIBRATION]):
            slopes = probe.slopes(direction, partial(probe.logits, ids))[:, :-1]
            logits, targets = probe.logits(ids)[:, :-1], ids[:, 1:]
            products = _products(logits, slopes).gather(2, targets[..., None])[..., 0]
            parts.append((products**2 / pulls_of(probe, logits, targets).clamp_min(_LEAST))[0])
        capped = torch.cat([part.clamp(max=_OUTLIER * part.median()) for part in parts])
        return cls(probe, null, direction, weight, max(float(capped.mean()), _TINY))

    def last(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Log likelihood ratio of each next token after whole prefixes with these logits, ``(B, V)``."""
        slopes = self.probe.slopes(self.direction, lambda: self.probe.last_logits(ids))
        return self._ratios(logits, slopes)

    def scores(self, ids: torch.Tensor) -> torch.Tensor:
        """Log likelihood ratio of each token at each position against its absence, ``(B, T, V)``."""
        slopes = self.probe.slopes(self.direction, lambda: self.probe.logits(ids))
        return self._ratios(self.probe.logits(ids), slopes)

    def _ratios(self, logits: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """With Student's noise, as other tokens of the batch have gradients of very different lengths."""
        pull = squared_pull(self.probe, logits).clamp_min(_TINY)
        seen = _products(logits, slopes) / (self.noise * pull).sqrt()
        expected = self.weight * self.null.power * (pull / self.noise).sqrt()
        return (
            (_FREEDOM + 1) / 2 * ((seen**2 / _FREEDOM).log1p() - ((seen - expected) ** 2 / _FREEDOM).log1p())
        )


def _products(logits: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """``<a(prefix, y), direction>`` for every y: the slope of its loss."""
    return (logits.softmax(dim=-1) * slopes).sum(dim=-1, keepdim=True) - slopes
