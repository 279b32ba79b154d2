"""Sparse recovery as the audit runs it: the cheapest solver that can tell that it succeeded, then the next.

Span check, pursuit and sparse Bayesian recovery read the same blocks. The first two know when they are right:
the check where the atoms inside the row space are as many as its rank, the pursuit where it leaves nothing
unexplained. Several updates of one node are read together by stacking the rows that share a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedpeft_attacks.bayes import sparse_bayes
from fedpeft_attacks.blocks import Block
from fedpeft_attacks.observations import observations
from fedpeft_attacks.pursuit import Pursuit, matching_pursuit
from fedpeft_attacks.span import span_check
from fedpeft_attacks.views import Guess, Knowledge, NotApplicable, View

Ranking = tuple[list[int], int, str]
"""Token ids, the most likely first; how many are claimed; the solver in plain words."""

_EXPLAINED = 1e-2
_WORK = 2**32


def sparse_recovery(blocks: Sequence[Block], known: Knowledge, tokens: int) -> Ranking:
    """Rank all tokens by the first solver whose answer explains the update.

    A pursuit that chooses as many tokens as there are dimensions explains everything and says nothing, and
    approximate atoms explain nothing exactly: there only the Bayesian recovery speaks, unless the dictionary
    is so large that it would take minutes. Blocks whose row space is full take no part in the pursuit.

    Args:
        blocks: observations whose tokens are the same; at least one.
        known: what the attacker knows beside them.
        tokens: number of distinct tokens, special ones included, that the attacker assumes.
    """
    exact = known.approximation is None
    telling = [block for block in blocks if not block.is_full and tokens < block.width]
    if exact and len(blocks) == 1 and not blocks[0].is_full:
        ranking, inside = span_check(blocks)
        if inside == len(blocks[0].row_space):
            return ranking, inside, "span check"
    costly = sum(block.atoms.shape[0] * block.width**2 for block in blocks) > _WORK
    if costly or (exact and telling):
        pursuit = matching_pursuit(telling or blocks, tokens)
        if costly or pursuit.unexplained < _EXPLAINED:
            ranking = pursuit.ranking if costly else _with_the_rest(pursuit, blocks, telling, known)
            return ranking, len(pursuit.chosen), "matching pursuit"
    return sparse_bayes(blocks, known.prior), tokens, "sparse Bayesian recovery"


def _with_the_rest(
    pursuit: Pursuit, blocks: Sequence[Block], telling: Sequence[Block], known: Knowledge
) -> list[int]:
    """The chosen tokens, then what the blocks without a say hold: such as B rows of a first round."""
    others = [block for block in blocks if not any(block is one for one in telling)]
    if not others:
        return pursuit.ranking
    taken = set(pursuit.chosen)
    return pursuit.chosen + [token for token in sparse_bayes(others, known.prior) if token not in taken]


def recover(views: Sequence[View]) -> Guess | NotApplicable:
    """What the updates of one node in several rounds show together; the tokens are those of all of them.

    Args:
        views: one or more views of the same base; the number of tokens of the last one is assumed for all.
    """
    blocks = joined(views)
    if isinstance(blocks, NotApplicable):
        return blocks
    known = views[-1].knowledge
    ranking, claimed, method = sparse_recovery(blocks, known, views[-1].tokens + len(known.given))
    certain = sum(token not in known.given for token in ranking[:claimed])
    near = "" if known.approximation is None else ", approximate atoms"
    return Guess([token for token in ranking if token not in known.given], certain, method + near)


def joined(views: Sequence[View]) -> list[Block] | NotApplicable:
    """The blocks of several views; rows over the same dictionary become one block."""
    found = [observations(view) for view in views]
    parts = [part for part in found if not isinstance(part, NotApplicable)]
    if not parts:
        return next(part for part in found if isinstance(part, NotApplicable))
    merged: list[Block] = []
    for block in (block for part in parts for block in part):
        same = next((i for i, old in enumerate(merged) if _share_atoms(old, block)), None)
        if same is None:
            merged.append(block)
        else:
            merged[same] = replace(merged[same], rows=np.concatenate([merged[same].rows, block.rows]))
    return merged


def _share_atoms(one: Block, other: Block) -> bool:
    return one.atoms is other.atoms or np.array_equal(one.atoms, other.atoms)
