"""Squared norms of per-example gradients, tile by tile, without storing a gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedpeft_kernels.gpu.launch import blocks_of, launch
from fedpeft_kernels.norms import check_pair

_ROWS, _COLUMNS, _TOKENS = 16, 128, 32


def squared_norms(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared Frobenius norms of the per-example gradients; see `fedpeft_kernels.norms.squared_norms`.

    Each program makes one tile of one example's gradient in registers and keeps the sum of its squares. Made
    for LoRA, where one side is the rank: the wide side is then read once.
    """
    check_pair(inputs, outputs)
    wide, narrow = (inputs, outputs) if inputs.shape[2] >= outputs.shape[2] else (outputs, inputs)
    examples, tokens, columns = wide.shape
    rows = narrow.shape[2]
    across, down = blocks_of(columns, _COLUMNS), blocks_of(rows, _ROWS)
    parts = wide.new_empty((examples, across * down), dtype=torch.float32)
    tile = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "TOKENS": _TOKENS}
    sides = (wide.contiguous(), narrow.contiguous(), parts)
    launch(_square, parts.numel(), *sides, tokens, columns, rows, across, down, **tile)
    return parts.sum(1)


@triton.jit
def _square(
    wide: tl.tensor,
    narrow: tl.tensor,
    parts: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    across: tl.tensor,
    down: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Sum of squares of one tile of ``narrow[b].T @ wide[b]``; float32 throughout."""
    program = tl.program_id(0)
    example = (program // (across * down)).to(tl.int64)
    column = (program // down) % across * COLUMNS + tl.arange(0, COLUMNS)
    row = program % down * ROWS + tl.arange(0, ROWS)
    wide += example * tokens * columns
    narrow += example * tokens * rows
    tile = tl.zeros([ROWS, COLUMNS], tl.float32)
    token = tl.arange(0, TOKENS)
    start = 0
    while start < tokens:
        some = (token[None, :] < tokens - start) & (row[:, None] < rows)
        left = tl.load(narrow + token[None, :] * rows + row[:, None], mask=some, other=0.0)
        some = (token[:, None] < tokens - start) & (column[None, :] < columns)
        right = tl.load(wide + token[:, None] * columns + column[None, :], mask=some, other=0.0)
        tile = tl.dot(left.to(tl.float32), right.to(tl.float32), tile, input_precision="ieee")
        wide += TOKENS * columns
        narrow += TOKENS * rows
        start += TOKENS
    tl.store(parts + program, tl.sum(tl.sum(tile * tile, 1), 0))
