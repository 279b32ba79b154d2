"""Unpacking bit planes straight into a running total."""

import triton
import triton.language as tl
from torch import Tensor

from fedpeft_kernels.gpu.launch import blocks_of, check_flat, launch, spans
from fedpeft_kernels.planes import check_planes, check_scales

BLOCK = 4096


def accumulate(
    planes_mask: Tensor, planes_sign: Tensor, scales: Tensor, offsets: Tensor, total: Tensor
) -> None:
    """Add the tensor's scale with the sign of each marked value, in place; see `fedpeft_kernels.planes`.

    Runs of eight values without a mark, which are the sectors of the card's memory, are neither read nor
    written.
    """
    check_flat(total)
    check_planes(planes_mask.numel(), planes_sign.numel(), total.numel())
    check_scales(scales.numel(), offsets.numel())
    blocks = blocks_of(total.numel(), BLOCK)
    table = spans(offsets, blocks, BLOCK)
    places = (planes_mask, planes_sign, scales, offsets, table.first, table.last, total)
    launch(_add, blocks, *places, total.numel(), BLOCK=BLOCK, num_warps=8)


@triton.jit
def _add(
    mask: tl.tensor,
    sign: tl.tensor,
    scales: tl.tensor,
    offsets: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    total: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One block: rows of eight values, a byte of each plane to a row."""
    block = tl.program_id(0).to(tl.int64)
    start = block * BLOCK
    row = tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)
    place = row[:, None] * 8 + bit[None, :]
    inside = row * 8 < size - start
    mask_bytes = tl.load(mask + start // 8 + row, mask=inside, other=0).to(tl.int32)
    signs = tl.load(sign + start // 8 + row, mask=inside, other=0).to(tl.int32)
    touched = (mask_bytes != 0)[:, None] & (place < size - start)
    values = tl.load(total + start + place, mask=touched, other=0.0)
    scale = tl.zeros([BLOCK // 8, 8], tl.float32)
    tensor = tl.load(first + block)
    end = tl.load(last + block)
    while tensor < end:
        lower = tl.maximum(tl.load(offsets + tensor) - start, 0).to(tl.int32)
        upper = tl.minimum(tl.load(offsets + tensor + 1) - start, BLOCK).to(tl.int32)
        scale = tl.where((place >= lower) & (place < upper), tl.load(scales + tensor), scale)
        tensor += 1
    negative = (signs[:, None] >> bit[None, :]) & 1
    marked = (mask_bytes[:, None] >> bit[None, :]) & 1
    moved = tl.where(negative != 0, values - scale, values + scale)
    tl.store(total + start + place, tl.where(marked != 0, moved, values), mask=touched)
