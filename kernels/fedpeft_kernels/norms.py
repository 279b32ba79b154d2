"""Per-example gradient norms of linear layers, in torch."""

import torch
from torch import Tensor

BLOCK = 256
"""Most squares that are added up in float32: rounding stays below 5e-7 of a norm."""


def squared_rows(matrix: Tensor) -> Tensor:
    """Squared L2 norm of each row of a float32 matrix, float64, shape ``(B,)``.

    Blocks of `BLOCK` values are added in float32, the blocks in float64; no copy of the matrix is made. A row
    with a value that is not finite, or whose squares overflow float32, gives inf or nan.
    """
    whole = matrix.shape[1] - matrix.shape[1] % BLOCK
    parts = (
        [matrix[:, :whole].unflatten(1, (-1, BLOCK)), matrix[:, None, whole:]] if whole else [matrix[:, None]]
    )
    norms = [torch.linalg.vector_norm(part, dim=2).double() for part in parts if part.shape[2]]
    sums = [part.square().sum(1) for part in norms]
    return torch.stack(sums).sum(0) if sums else matrix.new_zeros(len(matrix), dtype=torch.float64)


def squared_norms(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Squared Frobenius norms of the per-example gradients of a linear layer's weight.

    The gradient of example ``b`` is the sum over tokens of ``outputs[b, t]`` times ``inputs[b, t]``, an
    ``m x n`` matrix. One example's matrix lives at a time, or, for few tokens, only the ``T x T`` products of
    inputs and of outputs, whose inner product is the same number (Goodfellow 2015, arXiv 1510.01799; Li et
    al. 2022, arXiv 2110.05679, section 4).

    Args:
        inputs: what the layer was given, shape ``(B, T, n)``.
        outputs: gradients of the loss by what it returned, shape ``(B, T, m)``.

    Returns:
        float32, shape ``(B,)``; products and sums are float32.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_pair(inputs, outputs)
    tokens, columns, rows = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    squared_norm = _by_products if tokens * (columns + rows) < columns * rows else _by_gradient
    norms = inputs.new_zeros(len(inputs), dtype=torch.float32)
    for example, (activation, gradient) in enumerate(zip(inputs.float(), outputs.float(), strict=True)):
        norms[example] = squared_norm(activation, gradient)
    return norms


def _by_gradient(inputs: Tensor, outputs: Tensor) -> Tensor:
    return torch.einsum("tm,tn->mn", outputs, inputs).square().sum()


def _by_products(inputs: Tensor, outputs: Tensor) -> Tensor:
    input_products, gradient = (torch.einsum("ti,si->ts", x, x) for x in (inputs, outputs))
    return (input_products * gradient).sum()


def check_pair(inputs: Tensor, outputs: Tensor) -> None:
    """Refuse inputs and outputs that are not ``(B, T, n)`` and ``(B, T, m)``.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if inputs.ndim != 3 or outputs.ndim != 3 or inputs.shape[:2] != outputs.shape[:2]:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and outputs {tuple(outputs.shape)} are not (B, T, n), (B, T, m)"
        )
