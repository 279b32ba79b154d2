"""The matched filter: which next token does a prefix have, judged by the observed values alone.

A causal base makes the gradient of a batch a sum over predicted tokens, sum_t w a_t, and a_t, the gradient of
the loss of token t, depends on nothing but the prefix and that token. So a prefix shows its own continuation:
<a(prefix, y), C^-1 v> is large for the y that was there, whatever stands in the other records and later. All
y of a prefix cost two passes, as the product is a slope of the loss along the direction C^-1 v. C is the
covariance of such gradients over texts of the base, one Kronecker product per tensor (Martens and Grosse
2015); noise and scale are calibrated on the same texts. It needs no rank and no exact values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.rng import stream
from fedpeft_attacks.sequences.probing import Probe, Records
from fedpeft_attacks.views import Start

Matrix = NDArray[np.float64]

_TEXTS, _LENGTH, _CALIBRATION = 32, 40, 12
_DAMPING = 0.03
_FREEDOM = 4.0
_LEAST, _OUTLIER = 1e-6, 50.0
_TINY = 1e-30


@dataclass(frozen=True)
class Whitening:
    """Inverse covariance of token gradients, a Kronecker product per tensor.

    Attributes:
        layout: of the values.
        sides: inverse second moments of rows and columns by tensor.
    """

    layout: Layout
    sides: Mapping[str, tuple[Matrix, Matrix]] = field(repr=False)

    def __call__(self, values: FloatVector) -> FloatVector:
        """C^-1 values."""
        tensors = {
            name: (self.sides[name][0] @ _flat(tensor) @ self.sides[name][1]).reshape(tensor.shape)
            for name, tensor in self.layout.split(values).items()
        }
        return self.layout.flatten(tensors)


def _flat(tensor: FloatVector) -> Matrix:
    return np.atleast_2d(tensor).reshape(len(np.atleast_2d(tensor)), -1).astype(np.float64)


def _inverse(moment: Matrix) -> Matrix:
    """Damped inverse of a second moment scaled to a mean eigenvalue of one."""
    size = len(moment)
    scale = max(float(np.trace(moment)) / size, _TINY)
    return np.asarray(np.linalg.inv(moment / scale + _DAMPING * np.eye(size)), np.float64)


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
        texts, layout = probe.texts(_TEXTS, _LENGTH), probe.attached.layout
        signs = stream(0, 0, "", "audit-null-signs")
        gradients = [
            probe.gradient([text], [signs.choice([-1.0, 1.0], len(text) - 1).tolist()]) for text in texts
        ]
        split = [layout.split(gradient) for gradient in gradients]
        sides: dict[str, tuple[Matrix, Matrix]] = {}
        for name in layout.names:
            parts = [_flat(tensors[name]) for tensors in split]
            wide, tall = np.hstack(parts), np.vstack(parts)
            rows, columns = wide @ wide.T, tall.T @ tall
            energy = max(float(np.trace(rows)) / len(parts), _TINY)
            sides[name] = (_inverse(rows) / energy, _inverse(columns))
        whitening = Whitening(layout, sides)
        energy = sum(float(g @ whitening(g)) for g in gradients)
        size = float(np.mean([np.linalg.norm(probe.gradient([text])) for text in texts[:_CALIBRATION]]))
        return cls(whitening, texts, energy / _lengths(probe, texts), size)


_NULLS: WeakKeyDictionary[Start, Null] = WeakKeyDictionary()


def null_of(start: Start, probe: Probe) -> Null:
    """`Null.of`, once per start: all stages of a round have the same."""
    if start not in _NULLS:
        _NULLS[start] = Null.of(probe)
    return _NULLS[start]


def _lengths(probe: Probe, texts: Records) -> float:
    """Sum of ``|head' u|^2`` over all targets of texts."""
    ids, there = _batch(texts)
    squares = squared_pull(probe, probe.logits(ids)[:, :-1]).gather(2, ids[:, 1:, None])[..., 0]
    return max(float(squares[there].sum()), _TINY)


def _batch(texts: Records) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts filled up on the right to ``(B, T)``, which a causal base does not see, and where targets are."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return ids, torch.arange(1, longest) < lengths[:, None]


def squared_pull(probe: Probe, logits: torch.Tensor) -> torch.Tensor:
    """``|head' (p - e_y)|^2`` for every y: how hard each token would pull; shape ``(..., V)``."""
    head = probe.head_VD
    mean = logits.softmax(dim=-1) @ head
    return (mean**2).sum(-1, keepdim=True) - 2 * mean @ head.T + (head**2).sum(1)


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
        direction = null.whitening(residual)
        ids, there = _batch(null.texts[:_CALIBRATION])
        logits, targets = probe.logits(ids)[:, :-1], ids[:, 1:, None]
        slopes = probe.slopes(direction, lambda: probe.logits(ids))[:, :-1]
        products = _products(logits, slopes).gather(2, targets)
        pulls = squared_pull(probe, logits).gather(2, targets).clamp_min(_LEAST)
        ratios = (products**2 / pulls)[..., 0]
        parts = [ratio[row] for ratio, row in zip(ratios, there, strict=True)]
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
