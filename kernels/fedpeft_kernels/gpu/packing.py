"""Marking the kept values: bit planes, counts and exact sums in one pass."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedpeft_kernels import planes
from fedpeft_kernels.gpu.launch import blocks_of, check_flat, launch, spans
from fedpeft_kernels.planes import Threshold

BLOCK = 4096
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@dataclass(frozen=True)
class Planes:
    """`fedpeft_kernels.planes.Planes` as tensors of one device."""

    mask: Tensor
    sign: Tensor
    counts: Tensor
    sums: Tensor
    shift: int
    size: int

    def host(self) -> planes.Planes:
        """The same planes as numpy arrays; this is all that need leave the device."""
        arrays = [tensor.cpu().numpy() for tensor in (self.mask, self.sign, self.counts, self.sums)]
        return planes.Planes(*arrays, shift=self.shift, size=self.size)


def pack(values: Tensor, offsets: Tensor, cut: Threshold) -> Planes:
    """Mark the nonzero values that the threshold keeps; see `fedpeft_kernels.planes.pack`.

    One pass over the values if the threshold comes from `fedpeft_kernels.gpu.threshold` and keeps all its
    ties; otherwise a pass before it counts the ties of each block and finds the largest magnitude.
    """
    check_flat(values)
    size, tensors = values.numel(), len(offsets) - 1
    blocks = blocks_of(size, BLOCK)
    raw = values.view(torch.int32)
    ranked = cut.bits > 0 and cut.ties not in (0, cut.equal)
    before, shift = offsets, cut.shift
    if ranked or shift is None:
        before, shift = _survey(raw, blocks, cut)
    table = spans(offsets, blocks, BLOCK)
    mask, sign = (raw.new_empty(blocks_of(size, 8), dtype=torch.uint8) for _ in range(2))
    counts, sums = (offsets.new_zeros(tensors, dtype=torch.int64) for _ in range(2))
    floor = max(1, cut.bits + (cut.ties == 0))
    places = (raw, offsets, table.first, table.last, before, mask, sign, counts, sums)
    numbers = (size, floor, cut.ties, shift)
    # Without the limit a thread takes 109 registers and too few programs share a multiprocessor.
    launch(_pack, blocks, *places, *numbers, RANKED=ranked, BLOCK=BLOCK, num_warps=8, maxnreg=64)
    return Planes(mask, sign, counts, sums, shift, size)


def _survey(raw: Tensor, blocks: int, cut: Threshold) -> tuple[Tensor, int]:
    """The number of ties before each block, int64, and the fixed point of the sums."""
    tied = raw.new_empty(blocks)
    largest = raw.new_zeros(1)
    launch(_look, blocks, raw, tied, largest, raw.numel(), cut.bits, BLOCK=BLOCK, num_warps=8)
    return torch.cumsum(tied, 0) - tied, planes.fixed_point(int(largest))


@triton.jit(do_not_specialize=["cut"])
def _look(
    raw: tl.tensor,
    tied: tl.tensor,
    largest: tl.tensor,
    size: tl.tensor,
    cut: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Count the values of the block that lie on the threshold; keep the largest magnitude of all blocks."""
    block = tl.program_id(0).to(tl.int64)
    start = block * BLOCK
    place = tl.arange(0, BLOCK)
    bits = tl.load(raw + start + place, mask=place < size - start, other=0) & _MAGNITUDE
    tl.store(tied + block, tl.sum((bits == cut).to(tl.int32), 0))
    tl.atomic_max(largest, tl.max(bits, 0))


@triton.jit
def _fixed(bits: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """``floor(magnitude * 2**shift)`` from the bits of a magnitude; exact, below ``2**31``."""
    exponent = bits >> 23
    significand = (bits & 0x7FFFFF) | tl.where(exponent > 0, 1 << 23, 0)
    left = tl.maximum(exponent, 1) - 150 + shift
    right = tl.minimum(tl.maximum(-left, 0), 31)
    return (significand << tl.maximum(left, 0)) >> right


@triton.jit
def _bytes(flags: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Eight flags to a byte, the first in the lowest bit."""
    weighted = flags.to(tl.int32) << (tl.arange(0, BLOCK) % 8)
    return tl.sum(tl.reshape(weighted, [BLOCK // 8, 8]), 1).to(tl.uint8)


@triton.jit(do_not_specialize=["floor", "ties", "shift"])
def _pack(
    raw: tl.tensor,
    offsets: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    before: tl.tensor,
    mask: tl.tensor,
    sign: tl.tensor,
    counts: tl.tensor,
    sums: tl.tensor,
    size: tl.tensor,
    floor: tl.tensor,
    ties: tl.tensor,
    shift: tl.tensor,
    RANKED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Mark one block; ``floor`` is at least 1, so that neither zeros nor places past the end are marked."""
    block = tl.program_id(0).to(tl.int64)
    start = block * BLOCK
    place = tl.arange(0, BLOCK)
    pattern = tl.load(raw + start + place, mask=place < size - start, other=0)
    bits = pattern & _MAGNITUDE
    marked = bits >= floor
    if RANKED:
        tie = bits == floor
        rank = tl.load(before + block) + tl.cumsum(tie.to(tl.int32), 0)
        marked = marked & ((bits > floor) | (rank <= ties))
    row = block * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    inside = row * 8 < size
    tl.store(mask + row, _bytes(marked, BLOCK), mask=inside)
    tl.store(sign + row, _bytes(marked & (pattern < 0), BLOCK), mask=inside)
    tensor = tl.load(first + block)
    end = tl.load(last + block)
    while tensor < end:
        lower = tl.maximum(tl.load(offsets + tensor) - start, 0).to(tl.int32)
        upper = tl.minimum(tl.load(offsets + tensor + 1) - start, BLOCK).to(tl.int32)
        inside_tensor = marked & (place >= lower) & (place < upper)
        term = tl.where(inside_tensor, _fixed(bits, shift), 0)
        tl.atomic_add(counts + tensor, tl.sum(inside_tensor.to(tl.int32), 0).to(tl.int64))
        tl.atomic_add(sums + tensor, tl.sum(term.to(tl.int64), 0))
        tensor += 1
