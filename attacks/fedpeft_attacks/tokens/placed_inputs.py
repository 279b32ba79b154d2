"""Inputs of a base with absolute positions: a layer norm of token and position embedding, kept as factors.

In BERT, RoBERTa, DistilBERT or GPT-2 the first modules read ``norm(E[token] + P[place])``, with the token
type in P. A table of that for every token at every place takes 48 GB for BERT-base; its factors take 0.3.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.bases.probe import positions_of
from fedpeft_attacks.tokens.blocks import Matrix

MOST_PLACES = 512
"""Places of a record that are looked at; later ones are taken for empty."""

_PROBE = 6
_SAME = 1e-4
_TINY = 1e-30

_Passes = dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]
"""Input and output of the modules that a pass went through, in order; shape ``(T, width)`` each."""


@dataclass(frozen=True, eq=False)
class PlacedInputs:
    """What is read for each token at each place: ``(tokens[v] + places[p]) * scales[v, p] + bias``.

    Attributes:
        tokens: float32, shape ``(tokens, width)``.
        places: float32, shape ``(places, width)``; place 0 is the first token of a record.
        bias: shape ``(width,)``.
        scales: float32, shape ``(tokens, places)``; one over the deviation that the norm divides by.
    """

    tokens: NDArray[np.float32]
    places: NDArray[np.float32]
    bias: NDArray[np.float32]
    scales: NDArray[np.float32]

    def up_to(self, places: int) -> PlacedInputs:
        """The same for so many first places, or all that there are."""
        return replace(self, places=self.places[:places], scales=self.scales[:, :places])

    def projected(self, projection: NDArray[np.floating]) -> PlacedInputs:
        """The same through a linear map, shape ``(rank, width)``."""
        across = projection.T.astype(np.float32)
        parts = (self.tokens @ across, self.places @ across, self.bias @ across)
        return PlacedInputs(*parts, self.scales)

    def rows(self, tokens: NDArray[np.integer], places: NDArray[np.integer]) -> NDArray[np.float32]:
        """The inputs of some pairs, shape ``(pairs, width)``."""
        sums = self.tokens[tokens] + self.places[places]
        return sums * self.scales[tokens, places][:, None] + self.bias

    def insides(self, basis: Matrix) -> NDArray[np.float32]:
        """Squared cosine of every pair with the span of orthonormal rows, shape ``(tokens, places)``.

        Args:
            basis: shape ``(rank, width)``; rows of other lengths weigh their direction.
        """
        across = basis.T.astype(np.float32)
        tokens, places, bias = self.tokens @ across, self.places @ across, self.bias @ across
        lengths = self._squares
        for place, scale in enumerate(self.scales.T):
            along = (tokens + places[place]) * scale[:, None] + bias
            lengths[:, place] = np.einsum("vk,vk->v", along, along) / np.maximum(lengths[:, place], _TINY)
        return np.clip(lengths, 0.0, 1.0)

    @property
    def _squares(self) -> NDArray[np.float32]:
        """Squared length of every pair, shape ``(tokens, places)``."""
        sums = np.einsum("vi,vi->v", self.tokens, self.tokens)[:, None] + 2 * (self.tokens @ self.places.T)
        sums += np.einsum("pi,pi->p", self.places, self.places)
        ends = (self.tokens @ self.bias)[:, None] + self.places @ self.bias
        return (sums * self.scales + 2 * ends) * self.scales + self.bias @ self.bias


class _Reached(Exception):
    """Ends a forward pass as soon as what is wanted is known."""


def placed_inputs(model: Any, reader: Any, vocabulary: int) -> PlacedInputs | None:
    """The factors of what a module reads; None where that is no norm of token plus position embedding.

    They are found by asking the model, so that offsets of positions (RoBERTa) and token types need no rule,
    and believed only where they give what the module read. A projection between norm and module (ELECTRA,
    ALBERT) is followed.

    Args:
        model: the model that carries the adapter.
        reader: the adapted module.
        vocabulary: number of tokens.
    """
    table = getattr(model.get_input_embeddings(), "weight", None)
    if table is None:
        return None
    embeddings = table.detach().float().cpu()[:vocabulary]
    ids = _ordinary(model, vocabulary)
    passes, read = _trace(model, reader, ids)
    path = _path(passes, read)
    if path is None:
        return None
    norm, linear = path
    sums = [passes[norm][0], _trace(model, reader, ids.flip(0))[0][norm][0]]
    if sums[0].shape[1] != embeddings.shape[1]:
        return None
    rests = [part - embeddings[order] for part, order in zip(sums, (ids, ids.flip(0)), strict=True)]
    if not _same(*rests):
        return None
    count = min(positions_of(model) or MOST_PLACES, MOST_PLACES)
    long = ids.repeat(-(-count // len(ids)))[:count]
    places = _trace(model, norm, long)[1] - embeddings[long]
    factors = _factors(norm, embeddings, places)
    factors = factors if linear is None else _after(factors, linear)
    again = factors.rows(ids.numpy(), np.arange(len(ids)))
    return factors if _same(torch.from_numpy(again), read) else None


def _ordinary(model: Any, vocabulary: int) -> torch.Tensor:
    """A few tokens that are no padding, which counts for no position in some bases."""
    padding = model.config.get_text_config().pad_token_id
    return torch.tensor([token for token in range(vocabulary) if token != padding][-_PROBE:])


def _trace(model: Any, last: Any, ids: torch.Tensor) -> tuple[_Passes, torch.Tensor]:
    """Norms and linear layers that a record passes before a module, and what that module reads."""
    passes: _Passes = {}
    read: list[torch.Tensor] = []

    def keep(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if module not in passes and inputs[0].ndim == 3:
            passes[module] = (_bare(inputs[0]), _bare(output))

    def stop(_: Any, inputs: tuple[Any, ...]) -> None:
        read.append(_bare(inputs[0]))
        raise _Reached

    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear) and module is not last:
                stack.callback(module.register_forward_hook(keep).remove)
        stack.callback(last.register_forward_pre_hook(stop).remove)
        with suppress(_Reached):
            model(input_ids=ids[None].to(next(model.parameters()).device))
    return passes, read[0]


def _bare(values: torch.Tensor) -> torch.Tensor:
    return values[0].detach().float().cpu()


def _path(passes: _Passes, read: torch.Tensor) -> tuple[Any, Any] | None:
    """The norm whose output was read, and the linear layer between, None where there is none."""
    norms = [module for module in passes if isinstance(module, torch.nn.LayerNorm)]
    for norm in norms:
        output = passes[norm][1]
        if _same(output, read):
            return norm, None
        for module, (entering, leaving) in passes.items():
            if isinstance(module, torch.nn.Linear) and _same(entering, output) and _same(leaving, read):
                return norm, module
    return None


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _SAME * second.abs().max().clamp_min(_TINY))


def _factors(norm: Any, embeddings: torch.Tensor, places: torch.Tensor) -> PlacedInputs:
    """The factors of a layer norm over all sums of a token's and a place's row."""
    tokens, places = (part - part.mean(dim=1, keepdim=True) for part in (embeddings, places))
    squares = 2 * tokens @ places.T + tokens.square().sum(1)[:, None] + places.square().sum(1)
    scales = (squares / tokens.shape[1] + norm.eps).rsqrt()
    weight = torch.ones(tokens.shape[1]) if norm.weight is None else norm.weight.detach().float().cpu()
    bias = torch.zeros(tokens.shape[1]) if norm.bias is None else norm.bias.detach().float().cpu()
    parts = (tokens * weight, places * weight, bias, scales)
    return PlacedInputs(*(part.numpy() for part in parts))


def _after(factors: PlacedInputs, linear: Any) -> PlacedInputs:
    through = factors.projected(linear.weight.detach().float().cpu().numpy())
    if linear.bias is None:
        return through
    return replace(through, bias=through.bias + linear.bias.detach().float().cpu().numpy())
