"""The span check: is a token's atom inside the row space of the update?

Source: Petrov et al., DAGER, arXiv 2405.15586, section 4, for the rows of a LoRA factor instead of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedpeft_attacks.tokens.blocks import Block, Vector, energies

INSIDE, NEAR = 1e-2, 0.05
"""Sines of the angle to the row space between which the vocabulary itself sets the limit, see `limit`."""

_TAIL, _FALSE = 64, 0.05


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
    rank = max(len(block.row_space) for block in blocks)
    near = int((angles < limit(angles, rank)).sum())
    claimed = near if near >= rank else int((angles < INSIDE).sum())  # fewer do not make up the row space
    return np.argsort(angles, kind="stable").tolist(), claimed


def limit(angles: Vector, rank: int) -> float:
    """Sine below which a token counts as found: where chance would leave a twentieth of a token.

    Tokens of the batch lie at 0 but for rounding, which weak directions of an update feel most; how near the
    others come depends on vocabulary and rank. At most as many tokens as ranks can lie inside, so the next
    ones are no tokens of the batch: their lower tail is a power law (Hill, Ann. Stat. 3, 1975), which is
    followed down to the angle where a twentieth of a token is expected.

    Args:
        angles: sine of every token, shape ``(tokens,)``.
        rank: of the row space.
    """
    others = np.sort(angles)[rank : rank + _TAIL]
    if len(others) < _TAIL or others[0] <= INSIDE:
        return INSIDE
    slope = float(np.log(others[-1] / others).mean())
    return float(np.clip(others[-1] * (_FALSE / len(others)) ** slope, INSIDE, NEAR))
