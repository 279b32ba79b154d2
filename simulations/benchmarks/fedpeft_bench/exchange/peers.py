"""How others send a share of the values: ComPEFT, STC as OpenFL ships it, top-k with indices.

Each is written from its published rule and measured as ours is. A peer is charged for values and for what its
receiver needs to read them; names, shapes, framing, checksums and signatures come for free. Where a rule
leaves the method open the fastest one that numpy has is used: thresholds by partial sort (the authors'
programs sort fully or call ``kthvalue``), masks by ``packbits``.

Sources: ComPEFT, Yadav et al. 2023, arXiv 2311.13171, section 2, and the authors' repository
(prateeky2806/compeft, ``src/qlora/ties_utils.py``). STC, Sattler et al. 2019, arXiv 1903.02891, as it stands
in OpenFL (``openfl/pipelines/stc_pipeline.py``). Top-k: Aji and Heafield 2017, arXiv 1704.05021.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np

from fedpeft.exchange import FloatVector, Layout

_TINY = float(np.finfo(np.float32).tiny)


class Peer(Protocol):
    """Values to bytes and back; what is lost on the way is the peer's error."""

    @property
    def label(self) -> str:
        """Name in tables and pictures."""
        ...

    @property
    def density(self) -> float | None:
        """Share of values that are kept; None keeps all."""
        ...

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """The bytes; raises ``ModuleNotFoundError`` where a package is not installed."""
        ...

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """float32, shape ``(layout.size,)``."""
        ...


def sparse_peers(density: float) -> list[Peer]:
    """The peers that keep a share of the values."""
    return [
        ComPeftMasks(density, "alpha"),
        ComPeftMasks(density, "mean"),
        OpenFlStc(density),
        TopK(density, "<f4"),
        TopK(density, "<f2"),
    ]


def compeft_formula_bits(size: int, density: float) -> float:
    """ComPEFT's cost in bits: the entropy of independent ternary symbols, and 16 bits of scale.

    A formula, not a codec: no public program writes these bytes.
    """
    empty = (1 - density) * math.log2(1 - density) if density < 1 else 0.0
    return -size * (empty + density * math.log2(density / 2)) + 16


@dataclass(frozen=True)
class ComPeftMasks:
    """ComPEFT's real bytes: a mask of positive and one of negative values, and a scale of 16 bits.

    One threshold for the whole vector; as in the authors' program one value more than the share is kept,
    and all that equal the threshold. The scale is the standard deviation of the uncut vector (``alpha`` = 1,
    what the paper advises without tuning) or the mean magnitude of what is kept (``mean``, the rule of STC).
    It is rounded to bfloat16, which unlike fp16 holds small updates.
    """

    density: float
    scale: Literal["alpha", "mean"]

    @property
    def label(self) -> str:
        """Name in tables and pictures."""
        return f"ComPEFT masks, {'alpha = 1' if self.scale == 'alpha' else 'mean scale'}"

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """Scale and two masks."""
        magnitudes = np.abs(values)
        place = max(0, values.size - int(self.density * values.size) - 1)
        threshold = max(np.partition(magnitudes, place)[place], _TINY)
        if self.scale == "mean":
            scale = float(magnitudes[magnitudes >= threshold].mean())
        else:
            scale = math.sqrt(float(np.dot(values, values)) / values.size - float(values.mean()) ** 2)
        short = (int(np.float32(scale).view(np.uint32)) + 0x8000) >> 16
        masks = np.packbits(values >= threshold), np.packbits(values <= -threshold)
        return struct.pack("<H", short) + b"".join(mask.tobytes() for mask in masks)

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """Positive less negative, times the scale."""
        scale = np.array([struct.unpack_from("<H", data)[0] << 16], np.uint32).view(np.float32)[0]
        masks = np.frombuffer(data, np.uint8, offset=2).reshape(2, -1)
        positive, negative = (np.unpackbits(mask, count=layout.size).view(np.int8) for mask in masks)
        result = (positive - negative).astype(np.float32)
        result *= scale
        return result


@dataclass(frozen=True)
class OpenFlStc:
    """OpenFL's STC pipeline as shipped: per tensor top-k, ternary, codes as float32, gzip at level 9.

    Two of its rules are kept although they harm it. The scale is the mean magnitude over the zero-filled
    tensor instead of the kept values, so that it is too small by the density; and whenever a kept value is
    below 1e-7 (any negative one is), 1e-7 is added to all of them. Charged beside the gzip streams: 5 bytes
    per tensor for their lengths and 4 for each entry of the map from codes to values.
    """

    density: float

    @property
    def label(self) -> str:
        """Name in tables and pictures."""
        return "OpenFL STC"

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """Length, map and stream of each tensor."""
        return b"".join(self._tensor(values[start:end]) for start, end in pairwise(layout.offsets))

    def _tensor(self, values: FloatVector) -> bytes:
        count = math.ceil(values.size * self.density)
        chosen = np.argpartition(np.abs(values), values.size - count)[values.size - count :]
        largest = values[chosen]
        if largest.min() < 1e-7:
            largest = largest + np.float32(1e-7)
        signs = np.zeros(values.size, np.int8)
        signs[chosen] = np.sign(largest)
        scale = float(np.abs(largest).sum(dtype=np.float64)) / values.size
        present = np.flatnonzero(np.bincount(signs + 1, minlength=3))
        codes = np.searchsorted(present, signs + 1) if present.size < 3 else signs + 1
        stream = gzip.compress(codes.astype("<f4").tobytes(), mtime=0)
        table = ((present - 1) * scale).astype("<f4").tobytes()
        return struct.pack("<IB", len(stream), present.size) + table + stream

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """Streams through their maps."""
        result, place = np.empty(layout.size, np.float32), 0
        for start, end in pairwise(layout.offsets):
            length, entries = struct.unpack_from("<IB", data, place)
            table = np.frombuffer(data, "<f4", entries, place + 5)
            place += 5 + 4 * entries + length
            codes = np.frombuffer(gzip.decompress(data[place - length : place]), "<f4")
            result[start:end] = table[codes.astype(np.intp)]
        return result


@dataclass(frozen=True)
class TopK:
    """The largest magnitudes as they are, each with an index of 32 bits."""

    density: float
    dtype: Literal["<f4", "<f2"]

    @property
    def label(self) -> str:
        """Name in tables and pictures."""
        return f"top-k, int32 + fp{8 * np.dtype(self.dtype).itemsize}"

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """Indices, then values."""
        count = max(1, round(self.density * values.size))
        magnitudes = np.abs(values)
        threshold = np.partition(magnitudes, values.size - count)[values.size - count]
        indices = np.flatnonzero(magnitudes >= threshold)[:count]
        return indices.astype("<u4").tobytes() + values[indices].astype(self.dtype).tobytes()

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """Zeros, and the values in their places."""
        count = len(data) // (4 + np.dtype(self.dtype).itemsize)
        result = np.zeros(layout.size, np.float32)
        result[np.frombuffer(data, "<u4", count)] = np.frombuffer(data, self.dtype, count, 4 * count)
        return result
