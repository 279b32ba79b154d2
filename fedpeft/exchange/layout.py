"""The agreed order of the tensors that are exchanged."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError

FloatVector = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the exchanged tensors, sorted by name; agreed once by digest.

    Messages carry only values: names and shapes can then neither lie nor repeat. Two layouts are the
    same exactly when their digests are the same.

    Raises:
        ExchangeError: the names are not sorted and unique, or a shape has an empty axis.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if list(self.names) != sorted(set(self.names)) or len(self.names) != len(self.shapes):
            raise ExchangeError("a layout needs sorted, unique tensor names with one shape each")
        if any(axis < 1 for shape in self.shapes for axis in shape):
            raise ExchangeError("a layout cannot hold a tensor with an empty axis")

    @classmethod
    def of(cls, tensors: Mapping[str, Any]) -> Layout:
        """The layout of a mapping from name to anything with a ``shape``."""
        names = tuple(sorted(tensors))
        return cls(names, tuple(tuple(int(axis) for axis in tensors[name].shape) for name in names))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of values per tensor, shape ``(tensors,)``."""
        return np.array([math.prod(shape) for shape in self.shapes], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each tensor in the flat vector and, last, its end; shape ``(tensors + 1,)``."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def size(self) -> int:
        """Number of exchanged values."""
        return int(self.sizes.sum())

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over names and shapes, 32 bytes."""
        digest = hashlib.sha256(b"fedpeft-layout-1\0")
        for name, shape in zip(self.names, self.shapes, strict=True):
            encoded = name.encode()
            digest.update(struct.pack("<I", len(encoded)) + encoded)
            digest.update(struct.pack(f"<B{len(shape)}Q", len(shape), *shape))
        return digest.digest()

    def flatten(self, tensors: Mapping[str, Any]) -> FloatVector:
        """Concatenate tensors (torch or numpy) in the agreed order into float32 values, shape ``(size,)``.

        Raises:
            ExchangeError: a tensor is missing, unexpected or of another shape.
        """
        if (offered := Layout.of(tensors)).digest != self.digest:
            raise ExchangeError(f"tensors do not fit the agreed layout: {_difference(self, offered)}")
        parts = [_numpy(tensors[name]).reshape(-1) for name in self.names]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def split(self, values: FloatVector) -> dict[str, FloatVector]:
        """Views of a flat vector, one per tensor, in their shapes; the inverse of `flatten`.

        Raises:
            ExchangeError: the vector has another length than the layout.
        """
        if values.shape != (self.size,):
            raise ExchangeError(f"expected {self.size} values for this layout, got shape {values.shape}")
        ends = zip(self.names, self.shapes, self.offsets[:-1], self.offsets[1:], strict=True)
        return {name: values[start:end].reshape(shape) for name, shape, start, end in ends}


def _numpy(tensor: Any) -> FloatVector:
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().float().cpu().numpy()
    return np.asarray(tensor, dtype=np.float32)


def _difference(agreed: Layout, offered: Layout) -> str:
    if missing := sorted(set(agreed.names) - set(offered.names)):
        return f"{missing[0]!r} is missing"
    if extra := sorted(set(offered.names) - set(agreed.names)):
        return f"{extra[0]!r} is not part of it"
    pairs = zip(agreed.names, agreed.shapes, offered.shapes, strict=True)
    name, want, got = next((n, a, b) for n, a, b in pairs if a != b)
    return f"{name!r} has shape {got}, agreed is {want}"
