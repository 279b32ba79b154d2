"""What two adapters differ in: values, settings, and for LoRA the weight change that the factors make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.adapters.untrusted_config import check_patterns
from fedpeft.packing.pack import load, tensors_of
from fedpeft.packing.peft_folder import Array, Tensors, read_adapter

Adapter = tuple[Mapping[str, Any], Tensors]
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?A(\..+)?")
_VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "target_parameters", "alora_invocation_tokens")
"""Settings under which LoRA computes something else than ``scaling * B @ A`` of matrices."""


@dataclass(frozen=True)
class Gap:
    """How far values ``b`` are from values ``a``.

    Attributes:
        relative: ``|a - b|`` over the larger of ``|a|`` and ``|b|``, in L2; 0 where both are zero.
        cosine: of the angle between them; None where one is zero.
        changed: share of the values that are not equal.
    """

    relative: float
    cosine: float | None
    changed: float


@dataclass(frozen=True)
class Difference:
    """What two adapters differ in.

    Attributes:
        total: over all tensors that both have in one shape.
        tensors: each of those tensors, by name.
        only_a: names of tensors that only the first has, or has in another shape.
        only_b: the same for the second.
        settings: configuration keys whose values differ, with both values.
        weight_change: relative difference of ``scaling * B @ A`` over all modules, as `Gap.relative`; None
            unless both are plain LoRA on the same modules.
    """

    total: Gap
    tensors: dict[str, Gap]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: dict[str, tuple[Any, Any]]
    weight_change: float | None

    @property
    def same(self) -> bool:
        """Whether tensors and settings are equal."""
        return not (self.only_a or self.only_b or self.settings or self.total.changed)


@dataclass(frozen=True)
class _Sums:
    """Inner products and counts of a pair of tensors, which add up over tensors."""

    aa: float
    bb: float
    ab: float
    dd: float
    unequal: int
    size: int

    def __add__(self, other: _Sums) -> _Sums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Sums(*(mine + theirs for mine, theirs in pairs))

    @property
    def gap(self) -> Gap:
        largest = sqrt(max(self.aa, self.bb))
        return Gap(
            relative=sqrt(self.dd) / largest if largest else 0.0,
            cosine=self.ab / sqrt(self.aa * self.bb) if self.aa and self.bb else None,
            changed=self.unequal / self.size if self.size else 0.0,
        )


def difference(a: Path, b: Path) -> Difference:
    """Compare two adapters, each a folder or a packed file.

    Raises:
        ConfigError: one is neither, or has patterns that are more than names (`check_patterns`).
        ExchangeError: a packed file is damaged.
    """
    (config_a, tensors_a), (config_b, tensors_b) = _read(a), _read(b)
    shapes_b = {name: value.shape for name, value in tensors_b.items()}
    common = [name for name, value in sorted(tensors_a.items()) if shapes_b.get(name) == value.shape]
    sums = {name: _sums(tensors_a[name], tensors_b[name]) for name in common}
    total = sum(sums.values(), start=_Sums(0, 0, 0, 0, 0, 0))
    keys = sorted(config_a.keys() | config_b.keys())
    settings = {key: (config_a.get(key), config_b.get(key)) for key in keys}
    return Difference(
        total=total.gap,
        tensors={name: value.gap for name, value in sums.items()},
        only_a=tuple(sorted(set(tensors_a) - set(common))),
        only_b=tuple(sorted(set(tensors_b) - set(common))),
        settings={key: pair for key, pair in settings.items() if pair[0] != pair[1]},
        weight_change=_weight_change((config_a, tensors_a), (config_b, tensors_b)),
    )


def _read(path: Path) -> Adapter:
    if path.is_dir():
        files = read_adapter(path)
        return files.config, files.tensors
    packed = load(path)
    return packed.header.config, tensors_of(packed)


def _sums(a: Array, b: Array) -> _Sums:
    wide_a, wide_b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    lost = wide_a - wide_b
    return _Sums(
        float(wide_a @ wide_a),
        float(wide_b @ wide_b),
        float(wide_a @ wide_b),
        float(lost @ lost),
        int(np.count_nonzero(a != b)),
        a.size,
    )


def _weight_change(a: Adapter, b: Adapter) -> float | None:
    """Relative Frobenius norm of the difference of the weight changes, to about 1e-8."""
    first, second = _factors(*a), _factors(*b)
    if first is None or second is None or first.keys() != second.keys():
        return None
    pairs = [(first[module], second[module]) for module in first]
    if any(x[0].shape[1] != y[0].shape[1] or x[1].shape[0] != y[1].shape[0] for x, y in pairs):
        return None
    aa, bb = sum(_inner(x, x) for x, _ in pairs), sum(_inner(y, y) for _, y in pairs)
    squared = aa + bb - 2 * sum(_inner(x, y) for x, y in pairs)
    return sqrt(max(squared, 0.0) / max(aa, bb)) if max(aa, bb) > 0 else 0.0


def _inner(x: Pair, y: Pair) -> float:
    """Inner product of ``B A`` of two modules, from factors alone: ``sum of (Bx' By) * (Ax Ay')``."""
    return float(((x[1].T @ y[1]) * (x[0] @ y[0].T)).sum())


def _factors(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Pair] | None:
    """A and ``scaling * B`` by module, float64; None where the adapter is not plain LoRA on matrices."""
    if config.get("peft_type") != "LORA" or any(config.get(key) for key in _VARIANTS):
        return None
    check_patterns(config, "alpha_pattern", "the adapter")
    pairs: dict[str, Pair] = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name)
        module, kind, end = match.groups(default="") if match else ("", "", "")
        partner = tensors.get(f"{module}.lora_{kind}B{end}")
        if not module or partner is None:
            continue
        if value.ndim != 2 or partner.ndim != 2 or partner.shape[1] != value.shape[0]:
            return None
        scaling = _scaling(config, module, value.shape[0])
        if scaling is None:
            return None
        pairs[module] = value.astype(np.float64), scaling * partner.astype(np.float64)
    return pairs or None


def _matches(key: str, module: str) -> bool:
    """As ``peft.utils.other.get_pattern_key``."""
    try:
        return re.match(rf"(.*\.)?({key})$", module) is not None
    except re.error:
        return False


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float | None:
    """LoRA's factor of a module; of ``alpha_pattern`` the first entry that matches its name, as in peft."""
    alpha = config.get("lora_alpha", 8)
    pattern = config.get("alpha_pattern")
    if isinstance(pattern, dict):
        entries: dict[str, Any] = pattern
        name = module.removeprefix("base_model.model.")
        alpha = next((value for key, value in entries.items() if _matches(key, name)), alpha)
    if not isinstance(alpha, int | float) or rank < 1:
        return None
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
