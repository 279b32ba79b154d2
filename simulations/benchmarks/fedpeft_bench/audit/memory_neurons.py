"""Memory neurons: values of an adapter with which a coordinator makes an MLP remember single tokens.

With LoRA and frozen A the coordinator knows A and chooses B. Row ``j`` of a gate projection's B adds
``s * B_j . z`` to the gate of neuron ``j``, where ``z = A x`` is a sketch of the token's activation ``x``.
Rows so large that they drown the base's own gate open their neuron for sketches near one direction and close
it for all others. The gradient of row ``j`` of the up projection's B is then a sum over the tokens that
opened the neuron, weighted by how far: for a narrow one the sketch of one token, of which AdamW keeps the
signs. Rows of up are set so that an opened neuron adds nothing to the text's own way through the base, else
later layers and gradients suffer. What is needed beside the base is text of the same kind, for the sketches
of its tokens in context.

Own design, after NeuroImprint (arXiv 2606.20553: memory neurons in adapters) and Decepticons (arXiv
2201.12675: one neuron for each token).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.adapters import Attached
from fedpeft.exchange.layout import FloatVector

Tokens = NDArray[np.integer]

GATE, UP = "gate_proj", "up_proj"
_B = "lora_B.weight"
_EASY = 0.05  # of the constant direction: sketches below it open no neuron by their length alone
_RIDGE = 1e-3
_OTHERS = 0.005
_NOTHING = 1e-9


@dataclass(frozen=True)
class Sketches:
    """What tokens leave in the rows of one up projection.

    Attributes:
        tensor: name of its B in the layout.
        gate: name of B of the gate beside it.
        typical: mean sketch of each token less that of all, float32, shape ``(tokens, rank)``; row ``j`` is
            that of neuron ``j``.
    """

    tensor: str
    gate: str
    typical: torch.Tensor


@dataclass(frozen=True)
class MemoryNeurons:
    """A poisoned state, and how an update that was trained from it is read.

    Attributes:
        attached: the base with its adapter.
        tokens: ids that have a neuron, most frequent first.
        state: the poisoned values, float32, shape ``(layout.size,)``.
        sketches: of each poisoned layer.
    """

    attached: Attached
    tokens: tuple[int, ...]
    state: FloatVector
    sketches: tuple[Sketches, ...]

    def scores(self, update: FloatVector) -> NDArray[np.float64]:
        """How much better each token's own sketch fits its row than other tokens' do, in deviations.

        Args:
            update: what a node sent, float32, shape ``(layout.size,)``.

        Returns:
            Summed over layers, float64, shape ``(tokens,)``.
        """
        parts = self.attached.layout.split(update)
        total = torch.zeros(len(self.tokens), dtype=torch.float64)
        for sketch in self.sketches:
            rows = torch.from_numpy(parts[sketch.tensor][: len(self.tokens)].copy())
            fits = (_unit(rows) @ _unit(sketch.typical).T).abs()
            total += ((fits.diagonal() - fits.mean(1)) / (fits.std(1) + _NOTHING)).double()
        return total.numpy()


def memory_neurons(
    attached: Attached, texts: Sequence[Tokens], layers: Sequence[int], tail: int, strength: float = 60.0
) -> MemoryNeurons:
    """Poison gate and up of some layers, in their order, with one neuron for each frequent token.

    Args:
        attached: the base with LoRA and frozen A on gate and up of these layers.
        texts: token ids of text like that of the nodes.
        layers: numbers of the layers.
        tail: last tokens of each text, which all records share; they open no neuron.
        strength: standard deviation of a poisoned gate before its nonlinearity.
    """
    everything = np.concatenate(texts)
    rest = torch.from_numpy(np.concatenate([np.arange(len(text)) > 0 for text in texts]))
    ends = torch.from_numpy(np.concatenate([np.arange(len(text), 0, -1) <= tail for text in texts]))
    ids = torch.from_numpy(everything)[rest]
    counts = Counter(ids.tolist()).most_common(_module(attached.model, layers[0], GATE).out_features)
    seen = _Seen(ids, ends[rest], tuple(token for token, _ in counts))
    state, sketches = attached.initial(), list[Sketches]()
    for layer in layers:
        attached.load(state)
        inputs = torch.cat(list(_inputs(attached.model, texts, layer)))[rest]
        parts = {name: part.copy() for name, part in attached.layout.split(state).items()}
        sketches.append(_poisoned(attached.model, layer, seen, inputs, strength, parts))
        state = attached.layout.flatten(parts)
    return MemoryNeurons(attached, seen.tokens, state, tuple(sketches))


def _poisoned(
    model: Any, layer: int, seen: _Seen, inputs: torch.Tensor, strength: float, parts: dict[str, Any]
) -> Sketches:
    """Write a layer's neurons into ``parts``; what they leave in an update."""
    gate, up = (_module(model, layer, part) for part in (GATE, UP))
    gate_name, up_name = (
        next(name for name in parts if name.endswith(f"layers.{layer}.mlp.{part}.{_B}"))
        for part in (GATE, UP)
    )
    drawn = inputs @ _first(up.lora_A).weight.detach().T
    typical, neurons = seen.typical(drawn), len(seen.tokens)
    heights = (up.base_layer.weight.detach()[:neurons] * seen.typical(inputs)).sum(1)
    silent = -typical * (heights / typical.square().sum(1))[:, None]
    rows = seen.rows(inputs @ _first(gate.lora_A).weight.detach().T)
    parts[gate_name][:neurons] = rows.numpy() * strength / _first(gate.scaling)
    parts[up_name][:neurons] = silent.numpy() / _first(up.scaling)
    return Sketches(up_name, gate_name, typical - typical.mean(0))


@dataclass(frozen=True)
class _Seen:
    """Tokens of a text: their ids, which of them end a record, and the ids that get a neuron."""

    ids: torch.Tensor
    ends: torch.Tensor
    tokens: tuple[int, ...]

    def typical(self, vectors: torch.Tensor) -> torch.Tensor:
        """The mean vector of each token with a neuron."""
        return torch.stack([vectors[self.ids == token].mean(0) for token in self.tokens])

    def rows(self, drawn: torch.Tensor) -> torch.Tensor:
        """Rows of a gate that open for a token and for `_OTHERS` of the others; gates have unit deviation."""
        values, vectors = torch.linalg.eigh(drawn.T @ drawn / len(drawn))
        whitening = vectors / torch.sqrt(values + _RIDGE * values.max())
        white = drawn @ whitening
        constant = torch.linalg.lstsq(white, torch.ones(len(white), 1)).solution[:, 0]
        level = white @ constant  # near 1 for all tokens: it takes the place of a bias
        rows = list[torch.Tensor]()
        for token, centre in zip(self.tokens, _unit(self.typical(white)), strict=True):
            angle = torch.where(level > _EASY, (white @ centre) / level.clamp(min=_EASY), -torch.inf)
            others = self.ids != token
            text, ends = angle[others & ~self.ends], angle[others & self.ends]
            row = centre - max(_top(text, _OTHERS), _top(ends, 1e-3) + _EASY) * constant
            rows.append(whitening @ row / (white @ row).std())
        return torch.stack(rows)


def _top(values: torch.Tensor, share: float) -> float:
    """The value that a share of them exceeds."""
    return float(values.sort().values[int((1 - share) * (len(values) - 1))]) if len(values) else -torch.inf


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / (rows.norm(dim=1, keepdim=True) + 1e-12)


def _first(of_adapter: Any) -> Any:
    """What the one adapter has."""
    return next(iter(of_adapter.values()))


def _module(model: Any, layer: int, part: str) -> Any:
    return next(m for name, m in model.named_modules() if name.endswith(f"layers.{layer}.mlp.{part}"))


class _PassEnded(Exception):
    """Ends a pass where its result is at hand."""


def _inputs(model: Any, texts: Iterable[Tokens], layer: int) -> Iterator[torch.Tensor]:
    """What enters the MLP of a layer, ``(tokens, width)`` for each text; later layers are not computed."""
    seen: list[torch.Tensor] = []

    def stop(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0][0].detach().clone())
        raise _PassEnded

    mlp = next(m for name, m in model.named_modules() if name.endswith(f"layers.{layer}.mlp"))
    hook = mlp.register_forward_pre_hook(stop)
    try:
        for text in texts:
            try:
                with torch.no_grad():
                    model(torch.as_tensor(np.asarray(text, np.int64))[None])
            except _PassEnded:
                yield seen.pop()
    finally:
        hook.remove()
