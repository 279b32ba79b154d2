"""Exact selection of the largest magnitudes: a radix search over IEEE-754 bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedpeft_kernels.gpu.launch import blocks_of, check_flat, launch
from fedpeft_kernels.planes import INFINITY, Threshold, fixed_point

BLOCK = 8192
_DIGITS = ((31, 25), (25, 19), (19, 13), (13, 7), (7, 0))
"""The bits ``low .. high - 1`` of each digit."""

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
# What a pass hands on: the digits found so far, how many values to keep of those that have them, how many
# have them, and the largest magnitude of all.
_PREFIX = tl.constexpr(0)
_RANK = tl.constexpr(1)
_EQUAL = tl.constexpr(2)
_LARGEST = tl.constexpr(3)


def threshold(values: Tensor, count: int) -> Threshold:
    """Find where the ``count`` largest magnitudes end; see `fedpeft_kernels.planes.threshold`.

    Five passes, each a histogram of one digit over the values that share the digits before it. Four integers
    come to the host.
    """
    check_flat(values)
    if not 0 <= count <= values.numel():
        raise ValueError(f"cannot select {count} of {values.numel()} values")
    if count == 0:
        return Threshold(INFINITY, 0)
    raw, device = values.view(torch.int32), values.device
    state = torch.tensor([0, count, values.numel(), 0], device=device)
    bins = torch.zeros((len(_DIGITS), 128), dtype=torch.int64, device=device)
    blocks = blocks_of(values.numel(), BLOCK)
    programs = min(blocks, _programs(device))
    for row, (high, low) in zip(bins, _DIGITS, strict=True):
        digit = {"HIGH": high, "LOW": low, "BINS": 1 << (high - low)}
        launch(_count, programs, raw, state, row, values.numel(), blocks, **digit, BLOCK=BLOCK, num_warps=8)
        launch(_choose, 1, row, state, LOW=low, BINS=digit["BINS"], num_warps=1)
    bits, ties, equal, largest = (int(number) for number in state.tolist())
    return Threshold(bits, ties, equal, fixed_point(largest))


def _programs(device: torch.device) -> int:
    """As many programs as the card holds at a time; each keeps one histogram over all its blocks."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@triton.jit
def _count(
    raw: tl.tensor,
    state: tl.tensor,
    bins: tl.tensor,
    size: tl.tensor,
    blocks: tl.tensor,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Count the digit over the values with the prefix; the count of digit 0 is too high and not used."""
    prefix = tl.load(state + _PREFIX).to(tl.int32)
    counts = tl.zeros([BINS], tl.int32)
    place = tl.arange(0, BLOCK)
    block = tl.program_id(0)
    while block < blocks:
        start = block.to(tl.int64) * BLOCK
        bits = tl.load(raw + start + place, mask=place < size - start, other=0) & _MAGNITUDE
        digit = (bits >> LOW) & (BINS - 1)
        counts += tl.histogram(tl.where((bits >> HIGH) == (prefix >> HIGH), digit, 0), BINS)
        if HIGH == 31:
            tl.atomic_max(state + _LARGEST, tl.max(bits, 0).to(tl.int64))
        block += tl.num_programs(0)
    tl.atomic_add(bins + tl.arange(0, BINS), counts.to(tl.int64), mask=counts != 0)


@triton.jit
def _choose(bins: tl.tensor, state: tl.tensor, LOW: tl.constexpr, BINS: tl.constexpr) -> None:
    """Append to the prefix the digit at which the counts from the top reach the rank."""
    place = tl.arange(0, BINS)
    digit = BINS - 1 - place
    counts = tl.load(bins + digit)
    others = tl.sum(tl.where(digit == 0, 0, counts), 0)
    counts = tl.where(digit == 0, tl.load(state + _EQUAL) - others, counts)
    rank = tl.load(state + _RANK)
    skipped = tl.sum((tl.cumsum(counts, 0) < rank).to(tl.int32), 0)
    digit_bits = (BINS - 1 - skipped).to(tl.int64) << LOW
    tl.store(state + _PREFIX, tl.load(state + _PREFIX) | digit_bits)
    tl.store(state + _RANK, rank - tl.sum(tl.where(place < skipped, counts, 0), 0))
    tl.store(state + _EQUAL, tl.sum(tl.where(place == skipped, counts, 0), 0))
