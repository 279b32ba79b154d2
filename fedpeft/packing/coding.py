"""How parts of an adapter become bytes, and tensors again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import codec_named
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.transforms import Sparsify, Update, l2
from fedpeft.packing import uniform_quantiser
from fedpeft.packing.file_format import Part, check_names
from fedpeft.packing.peft_folder import WIDTHS, AdapterFiles, FloatType, Tensors, decoded, encoded
from fedpeft.packing.recipe import Recipe, codecs_of, seeded, step_of


def start_of(name: str) -> float:
    """Value at which training of a coded tensor starts: 1 for (IA)³'s scales, else 0."""
    return 1.0 if "ia3_l" in name.split(".") else 0.0


def code(files: AdapterFiles, recipe: Recipe) -> list[tuple[Part, bytes]]:
    """The parts of an adapter and their payloads.

    Raises:
        ExchangeError: a value is too large for its codec.
    """
    check_names(files.tensors)
    recipe = replace(recipe, step=step_of(recipe))
    groups: dict[str, Tensors] = {}
    for name, codec in codecs_of(files, recipe).items():
        groups.setdefault(codec, {})[name] = files.tensors[name]
    return [
        _code_exact(tensors, files.types) if codec == "exact" else _CODERS[codec](tensors, recipe)
        for codec, tensors in sorted(groups.items())
    ]


def decode(part: Part, payload: bytes) -> Tensors:
    """The tensors of a part, in their shapes.

    Raises:
        EnvelopeError: the payload is not one of this part.
        ExchangeError: the seed gives other values than were packed.
    """
    if part.codec == "exact":
        return _exact(part, payload)
    layout = part.layout
    if part.codec == "seed":
        return _from_seed(part, payload)
    if part.codec == "levels":
        return _moved(layout.split(uniform_quantiser.decode(payload, layout).values()), 1)
    tensors = layout.split(codec_named(part.codec).decode(payload, layout).dense())
    return _moved(tensors, 1) if part.codec == "ternary" else tensors


def _moved(tensors: Tensors, sign: int) -> Tensors:
    """Tensors plus (1) or less (-1) the values at which training starts."""
    return {
        name: value + np.float32(sign * start_of(name)) if start_of(name) else value
        for name, value in tensors.items()
    }


def _code_levels(tensors: Tensors, recipe: Recipe) -> tuple[Part, bytes]:
    assert recipe.step is not None  # `code` sets it
    changes = _moved(tensors, -1)
    layout = Layout.of(changes)
    values = layout.flatten(changes)
    coded = uniform_quantiser.quantise(values, layout, recipe.step)
    return _part(
        "levels", layout, uniform_quantiser.encode(coded), _error(values, coded.values()), step=recipe.step
    )


def _code_ternary(tensors: Tensors, recipe: Recipe) -> tuple[Part, bytes]:
    changes = _moved(tensors, -1)
    layout = Layout.of(changes)
    values = layout.flatten(changes)
    sparse = (
        _as_compeft(values, layout, recipe)
        if recipe.alpha is not None
        else _projected(values, layout, recipe)
    )
    codec = codec_named("ternary")
    fitted = codec.fit(sparse, layout)
    payload = codec.encode(fitted, layout)
    error = _error(values, fitted)
    return _part("ternary", layout, payload, error, density=recipe.density, alpha=recipe.alpha)


def _projected(values: FloatVector, layout: Layout, recipe: Recipe) -> FloatVector:
    """The same share of each tensor, with the magnitude that keeps its projection on the original.

    The magnitude ``sum x^2 / sum |x kept|`` is larger than the mean, which is optimal in L2 but shrinks the
    adapter: see `fedpeft.packing.uniform_quantiser`.
    """
    result = np.zeros_like(values)
    for start, end in zip(layout.offsets[:-1], layout.offsets[1:], strict=True):
        part = values[start:end]
        sparse = _largest(part, recipe.density)
        total = float(np.abs(sparse).sum(dtype=np.float64))
        scale = l2(part) ** 2 / total if total else 0.0
        result[start:end] = np.sign(sparse) * np.float32(scale)
    return result


def _as_compeft(values: FloatVector, layout: Layout, recipe: Recipe) -> FloatVector:
    """ComPEFT's rule: the largest of the whole vector, with the magnitude ``alpha`` times its deviation."""
    scale = np.float32((recipe.alpha or 0) * values.std(dtype=np.float64))
    return np.sign(_largest(values, recipe.density)) * scale


def _largest(values: FloatVector, density: float) -> FloatVector:
    layout = Layout(("all",), ((values.size,),))
    return Sparsify(density).apply(Update(layout, values, round=0, steps=0), {})[0].values


def _code_dense(codec: Literal["dense-fp32", "dense-bf16", "int8"]) -> Coder:
    def code(tensors: Tensors, recipe: Recipe) -> tuple[Part, bytes]:
        del recipe
        layout = Layout.of(tensors)
        values = layout.flatten(tensors)
        fitted = codec_named(codec).fit(values, layout)
        return _part(codec, layout, codec_named(codec).encode(fitted, layout), _error(values, fitted))

    return code


def _code_seed(tensors: Tensors, recipe: Recipe) -> tuple[Part, bytes]:
    layout = Layout.of(tensors)
    digest = hashlib.sha256(layout.flatten(tensors).astype("<f4").tobytes()).hexdigest()
    return _part("seed", layout, b"", 0.0, seed=recipe.seed, sha256=digest)


def _from_seed(part: Part, payload: bytes) -> Tensors:
    if payload or part.seed is None or any(len(shape) != 2 for shape in part.layout.shapes):
        raise EnvelopeError("tensors of a seed are matrices and need no bytes")
    pairs = zip(part.layout.names, part.layout.shapes, strict=True)
    tensors = {name: seeded(name, shape, part.seed) for name, shape in pairs}
    digest = hashlib.sha256(part.layout.flatten(tensors).astype("<f4").tobytes()).hexdigest()
    if digest != part.sha256:
        raise ExchangeError("the seed gives other values here than where it was packed; pack without a seed")
    return tensors


def _code_exact(tensors: Tensors, types: Mapping[str, FloatType]) -> tuple[Part, bytes]:
    coded = {name: encoded(tensors[name], types.get(name, "F32")) for name in sorted(tensors)}
    payload = b"".join(data for _, data in coded.values())
    named = {name: kind for name, (kind, _) in coded.items()}
    shapes = {name: list(tensors[name].shape) for name in coded}
    return Part(codec="exact", tensors=shapes, bytes=len(payload), types=named), payload


def _exact(part: Part, payload: bytes) -> Tensors:
    tensors: Tensors = {}
    start = 0
    for name, shape in part.tensors.items():
        kind = (part.types or {}).get(name, "")
        if kind not in WIDTHS:
            raise EnvelopeError(f"a tensor of type {kind!r} cannot be read")
        end = start + WIDTHS[kind] * math.prod(shape)
        if end > len(payload):
            raise EnvelopeError("tensors that are kept exactly are cut off")
        tensors[name] = decoded(payload[start:end], kind).reshape(shape)
        start = end
    if start != len(payload):
        raise EnvelopeError("tensors that are kept exactly have bytes to spare")
    return tensors


def _part(codec: Any, layout: Layout, payload: bytes, error: float, **settings: Any) -> tuple[Part, bytes]:
    shapes = {name: list(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
    return Part(codec=codec, tensors=shapes, bytes=len(payload), error=error, **settings), payload


def _error(values: FloatVector, fitted: FloatVector) -> float:
    norm = l2(values)
    return l2(values - fitted) / norm if norm else 0.0


Coder = Callable[[Tensors, Recipe], tuple[Part, bytes]]

_CODERS: dict[str, Coder] = {
    "levels": _code_levels,
    "ternary": _code_ternary,
    "dense-fp32": _code_dense("dense-fp32"),
    "dense-bf16": _code_dense("dense-bf16"),
    "int8": _code_dense("int8"),
    "seed": _code_seed,
}
