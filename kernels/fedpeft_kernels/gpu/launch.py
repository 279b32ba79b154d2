"""Launching kernels, and which tensors each block of a flat vector touches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, programs: int, *arguments: Any, **settings: Any) -> None:
    """Run a Triton kernel on a grid of one dimension, on the device of its first argument."""
    if programs:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **settings)


def blocks_of(size: int, block: int) -> int:
    """Number of blocks that cover ``size`` values."""
    return -(-size // block)


def check_flat(values: Tensor) -> None:
    """Refuse what is not a contiguous float32 vector.

    Raises:
        ValueError: another dtype or number of dimensions, or gaps in memory.
    """
    if values.dtype != torch.float32 or values.ndim != 1 or not values.is_contiguous():
        raise ValueError(
            f"a contiguous float32 vector is needed, not {values.dtype} of shape {tuple(values.shape)}"
        )


@dataclass(frozen=True)
class Spans:
    """The tensors ``first[b] .. last[b] - 1`` that overlap block ``b``; int32, shape ``(blocks,)``."""

    first: Tensor
    last: Tensor


def spans(offsets: Tensor, blocks: int, block: int) -> Spans:
    """Look up the tensors of each block, on the device of ``offsets``."""
    edges = torch.arange(blocks + 1, device=offsets.device) * block
    first = torch.searchsorted(offsets[1:].contiguous(), edges[:-1], right=True)
    last = torch.searchsorted(offsets[:-1].contiguous(), edges[1:])
    return Spans(first.int(), last.int())
