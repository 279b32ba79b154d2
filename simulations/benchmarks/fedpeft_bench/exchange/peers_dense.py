"""How others send all values: fp16 through a general compressor, and NVFLARE's block-wise quantisation.

Charged and measured as in `fedpeft_bench.exchange.peers`. Source of the rules: NVFLARE's filter
(``nvflare/app_opt/pt/quantization/quantizer.py``), which calls bitsandbytes: 8 bits with a dynamic map,
Dettmers et al. 2022, arXiv 2110.02861; nf4, Dettmers et al. 2023, arXiv 2305.14314, appendix E.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.exchange import FloatVector, Layout
from fedpeft_bench.exchange.peers import Peer


def dense_peers() -> list[Peer]:
    """The peers that keep all values."""
    return [Fp16Gzip(), Fp16Zstd(), Blockwise8(), NormalFloat4()]


def _half(values: FloatVector) -> bytes:
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype("<f2").tobytes()


@dataclass(frozen=True)
class Fp16Gzip:
    """All values as fp16 through gzip at level 6."""

    label: str = "fp16 + gzip -6"
    density: None = None

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """One stream."""
        return gzip.compress(_half(values), 6, mtime=0)

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """The halves as float32."""
        return np.frombuffer(gzip.decompress(data), "<f2").astype(np.float32)


@dataclass(frozen=True)
class Fp16Zstd:
    """All values as fp16 through Zstandard at level 3."""

    label: str = "fp16 + zstd -3"
    density: None = None

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """One frame."""
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress(_half(values))

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """The halves as float32."""
        import zstandard

        halves = zstandard.ZstdDecompressor().decompress(data)
        return np.frombuffer(halves, "<f2").astype(np.float32)


def _blocks(values: FloatVector, size: int) -> NDArray[np.float32]:
    """Values in rows of one block; the last row is filled with zeros."""
    return np.concatenate([values, np.zeros(-values.size % size, np.float32)]).reshape(-1, size)


@dataclass(frozen=True)
class Blockwise8:
    """8 bits per value and a float32 maximum per block of 4096, by bitsandbytes, tensor by tensor.

    NVFLARE's ``blockwise8``. It also sends the map of 256 levels with every tensor; that is not charged.
    """

    label: str = "NVFLARE blockwise8"
    density: None = None

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """Codes and maxima of each tensor."""
        functional, torch = _bitsandbytes()
        parts: list[bytes] = []
        for start, end in pairwise(layout.offsets):
            tensor = torch.from_numpy(values[start:end])
            codes, state = functional.quantize_blockwise(tensor, blocksize=4096)
            parts += [codes.numpy().tobytes(), state.absmax.numpy().astype("<f4").tobytes()]
        return b"".join(parts)

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """Levels times maxima."""
        functional, torch = _bitsandbytes()
        codebook, place = functional.create_dynamic_map(), 0
        result = np.empty(layout.size, np.float32)
        for start, size in zip(layout.offsets[:-1], layout.sizes, strict=True):
            blocks = -(-int(size) // 4096)
            codes = torch.from_numpy(np.frombuffer(data, np.uint8, size, place).copy())
            maxima = torch.from_numpy(np.frombuffer(data, "<f4", blocks, place + int(size)).copy())
            values = functional.dequantize_blockwise(codes, absmax=maxima, code=codebook, blocksize=4096)
            result[start : start + size] = values.numpy()
            place += int(size) + 4 * blocks
        return result


def _bitsandbytes() -> tuple[Any, Any]:
    """``bitsandbytes.functional`` and torch."""
    from fedpeft.bases.runtime import prepare

    prepare()
    import bitsandbytes.functional as functional
    import torch

    return functional, torch


_NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


@dataclass(frozen=True)
class NormalFloat4:
    """The 16 levels of nf4 and a float32 maximum per block of 64; 4.5 bits per value.

    NVFLARE's ``normfloat4``, with the arithmetic in numpy: on a processor bitsandbytes takes several times as
    long to encode. It also sends the 16 levels with every tensor; that is not charged.
    """

    label: str = "NVFLARE normfloat4"
    density: None = None

    def encode(self, values: FloatVector, layout: Layout) -> bytes:
        """Maxima and codes, two to a byte, of each tensor."""
        return b"".join(self._tensor(values[start:end]) for start, end in pairwise(layout.offsets))

    def _tensor(self, values: FloatVector) -> bytes:
        blocks = _blocks(values, 64)
        maxima = np.abs(blocks).max(1)
        shares = blocks / np.where(maxima, maxima, 1)[:, None]
        codes = np.zeros(shares.shape, np.uint8)
        for lower, upper in pairwise(_NF4):
            codes += shares > (lower + upper) / 2
        pairs = codes.reshape(-1, 2)
        return maxima.astype("<f4").tobytes() + (pairs[:, 0] << 4 | pairs[:, 1]).tobytes()

    def decode(self, data: bytes, layout: Layout) -> FloatVector:
        """Levels times maxima."""
        table = np.stack([np.repeat(_NF4, 16), np.tile(_NF4, 16)], 1)
        result, place = np.empty(layout.size, np.float32), 0
        for start, size in zip(layout.offsets[:-1], layout.sizes, strict=True):
            blocks = -(-int(size) // 64)
            maxima = np.frombuffer(data, "<f4", blocks, place)
            codebook = table[np.frombuffer(data, np.uint8, 32 * blocks, place + 4 * blocks)].reshape(-1, 64)
            codebook *= maxima[:, None]
            result[start : start + size] = codebook.reshape(-1)[:size]
            place += 36 * blocks
        return result
