"""Which adapted modules read token inputs, and what they read for each token: found by asking the model."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpeft.progress_reports import at
from fedpeft_attacks.tokens.placed_inputs import PlacedInputs, placed_inputs

_PROBE = (1, 2, 3, 2, 1)
_REPEATS = ((0, 4), (1, 3))
_SAME = 1e-4
_CHUNK = 2048
_PREFIX = "base_model.model."
_FIRST = re.compile(r"\.(layers|layer|h|blocks|block)\.0\.")


@dataclass(frozen=True)
class FirstLayer:
    """The first layer as an attacker knows it.

    Attributes:
        inputs: shape ``(tokens, width)``, input of the readers for each token of the vocabulary.
        readers: adapted modules whose input this is.
        approximation: why the inputs are only near, None where they are exact.
        placed: exact inputs by token and place, where they depend on both; None: they do not, or not in a
            way that is known.
    """

    inputs: NDArray[np.float32]
    readers: frozenset[str]
    approximation: str | None = None
    placed: PlacedInputs | None = None


class _Reached(Exception):
    """Ends a forward pass as soon as the wanted input is known."""


def first_layer(model: Any, modules: Sequence[str], vocabulary: int, start: int) -> FirstLayer:
    """Find the readers among adapted modules and what they read.

    A module reads tokens where its input is the same at two places that hold the same token after different
    contexts: only the first layer of a base without absolute positions does. Where no adapted module does,
    the earliest one is read, with its input after the start token alone in place of the true context, and
    where that is the norm of token plus position embedding, with the factors of that as well.

    Args:
        model: the model that carries the adapter.
        modules: names of the adapted modules, as in the layout; at least one.
        vocabulary: number of tokens.
        start: id of the token that begins a text.
    """
    named = _named(model, modules)
    probe = torch.tensor([[token % vocabulary for token in _PROBE]], device=_device(model))
    seen = _inputs_of(model, named, probe)
    exact = [name for name in sorted(seen) if _depends_on_token(seen[name])]
    first = exact[0] if exact else next(iter(seen))
    readers = frozenset(name for name in exact or seen if _same(seen[name], seen[first]))
    table = _table(model, named[first], vocabulary, () if exact else (start,))
    if exact:
        return FirstLayer(table, readers)
    return FirstLayer(table, readers, _why_near(modules), placed_inputs(model, named[first], vocabulary))


def _why_near(modules: Sequence[str]) -> str:
    if any(_FIRST.search(f".{name}.") for name in modules):
        return "what layer 0 reads depends on positions here, so the atoms are approximate"
    return "layer 0 carries no adapter, so the first layer that does was read, with approximate atoms"


def _named(model: Any, modules: Sequence[str]) -> dict[str, Any]:
    """The adapted modules by their names in the layout, which lack peft's prefix."""
    under = {path.removeprefix(_PREFIX): module for path, module in model.named_modules()}
    return {name: under[name] for name in modules if name in under}


def _device(model: Any) -> Any:
    return next(model.parameters()).device


@contextmanager
def _hooked(named: Mapping[str, Any], seen: dict[str, torch.Tensor], stop: bool) -> Generator[None]:
    def keep(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            seen[name] = inputs[0].detach().float()
            if stop:
                raise _Reached

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in named.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs_of(model: Any, named: Mapping[str, Any], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _hooked(named, seen, stop=False):
        model(input_ids=ids, use_cache=False)
    return {name: value[0] for name, value in seen.items() if value.ndim == 3}


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=_SAME)


def _depends_on_token(inputs: torch.Tensor) -> bool:
    """Whether equal tokens give equal inputs and different ones do not; shape ``(places, width)``."""
    scale = inputs.abs().max()
    equal = all((inputs[a] - inputs[b]).abs().max() <= _SAME * scale for a, b in _REPEATS)
    return equal and bool((inputs[0] - inputs[1]).abs().max() > _SAME * scale)


def _table(model: Any, reader: Any, vocabulary: int, before: tuple[int, ...]) -> NDArray[np.float32]:
    """Input of a reader for every token after a prefix, whose memory all of them share; float32."""
    parts: list[torch.Tensor] = []
    for start in range(0, vocabulary, _CHUNK):
        at("thousand tokens of the vocabulary", start // 1000, -(-vocabulary // 1000))
        tokens = torch.arange(start, min(start + _CHUNK, vocabulary), device=_device(model))[:, None]
        ids, memory = _after(model, before, tokens)
        past = {} if memory is None else {"past_key_values": memory}
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad(), _hooked({"": reader}, seen, stop=True):
            try:
                model(input_ids=ids, use_cache=bool(past), **past)
            except _Reached:
                parts.append(seen[""][:, -1].cpu())
    return torch.cat(parts).numpy()


def _after(model: Any, before: tuple[int, ...], tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Tokens, shape ``(n, 1)``, after a prefix: with its memory, or with the prefix itself without any."""
    if not before:
        return tokens, None
    prefix = torch.tensor([before], device=tokens.device)
    with torch.no_grad():
        memory = getattr(model(input_ids=prefix, use_cache=True), "past_key_values", None)
    repeat = getattr(memory, "batch_repeat_interleave", None)
    if repeat is None:
        return torch.cat([prefix.expand(len(tokens), -1), tokens], dim=1), None
    repeat(len(tokens))
    return tokens, memory
