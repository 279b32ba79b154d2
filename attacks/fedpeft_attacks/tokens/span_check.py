"""The span check: is a token's atom inside the row space of the update?

Source: Petrov et al., DAGER, arXiv 2405.15586, section 4, for the rows of a LoRA factor instead of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpeft_attacks.tokens.blocks import Block, Vector, energies

INSIDE = 1e-2
"""Sine of the angle to the row space below which a token counts as found."""


def outside(block: Block) -> Vector:
    """Sine of the angle between each atom and the row space, shape ``(tokens,)``; 0 is inside.

    An update of zeros spans nothing: every atom is outside.
    """
    along = block.atoms @ block.row_space.T.astype(block.atoms.dtype)
    inside, whole = np.einsum("vr,vr->v", along, along), np.einsum("vi,vi->v", block.atoms, block.atoms)
    shares = np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)
    return np.sqrt(np.clip(1.0 - shares, 0.0, 1.0))


def span_check(blocks: Sequence[Block]) -> tuple[list[int], int]:
    """Rank all tokens by their distance from the row spaces.

    Returns:
        Token ids, the most likely first, and how many of them the check claims to be in the batch. A full
        row space contains every atom: then nothing is claimed and the observed energy ranks the tokens.
    """
    angles = np.sqrt(np.mean([outside(block) ** 2 for block in blocks], axis=0))
    if all(block.is_full for block in blocks):
        return np.argsort(-energies(blocks), kind="stable").tolist(), 0
    ranking, claimed = np.argsort(angles, kind="stable"), int((angles < INSIDE).sum())
    return ranking.tolist(), claimed
