"""Sparse recovery as the audit runs it: the cheapest solver that can tell that it succeeded, then the next.

Span check, pursuit and sparse Bayesian recovery read the same blocks. The first two know when they are right:
the check where the atoms inside the row space are as many as its rank, the pursuit where it leaves nothing
unexplained. Several updates of one node are read together by stacking the rows that share a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedpeft_attacks.tokens.blocks import Block
from fedpeft_attacks.tokens.matching_pursuit import Pursuit, matching_pursuit
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.tokens.span_check import span_check
from fedpeft_attacks.tokens.sparse_bayes import Ranked, sparse_bayes
from fedpeft_attacks.views import Guess, Knowledge, NotApplicable, View
from fedpeft_attacks.work import Meter

_EXPLAINED = 1e-2


@dataclass(frozen=True)
class Ranking:
    """What a solver says.

    Attributes:
        tokens: ids, the most likely first.
        claimed: how many of them it calls certain.
        method: the solver in plain words.
        note: what it did not look at for its cost; empty: nothing.
    """

    tokens: list[int]
    claimed: int
    method: str
    note: str = ""


def sparse_recovery(
    blocks: Sequence[Block], known: Knowledge, tokens: int, meter: Meter | None = None
) -> Ranking:
    """Rank all tokens by the first solver whose answer explains the update.

    A pursuit that chooses as many tokens as there are dimensions explains everything and says nothing, and
    approximate atoms explain nothing exactly: there only the Bayesian recovery speaks. Blocks whose row space
    is full take no part in the pursuit.

    Args:
        blocks: observations whose tokens are the same; at least one.
        known: what the attacker knows beside them.
        tokens: number of distinct tokens, special ones included, that the attacker assumes.
        meter: counts a step for each check, choice and pass of the solvers.
    """
    meter = meter or Meter()
    exact = known.approximation is None
    telling = [block for block in blocks if not block.is_full and tokens < block.width]
    if exact and len(blocks) == 1 and not blocks[0].is_full and meter.step():
        ranking, inside = span_check(blocks)
        if inside == len(blocks[0].row_space):
            return Ranking(ranking, inside, "span check")
    if exact and telling:
        pursuit = matching_pursuit(telling, tokens, meter)
        if pursuit.unexplained < _EXPLAINED:
            ranking, note = _with_the_rest(pursuit, blocks, telling, (known, meter))
            return Ranking(ranking, len(pursuit.chosen), "matching pursuit", note)
    ranked = sparse_bayes(blocks, known.prior, meter)
    return Ranking(ranked.ranking, tokens, "sparse Bayesian recovery", note_of(ranked))


def note_of(ranked: Ranked) -> str:
    """What the Bayesian recovery left out; empty: nothing."""
    if ranked.among == len(ranked.ranking):
        return ""
    return (
        f"the sparse Bayesian recovery passed once over all {len(ranked.ranking):,} tokens of the vocabulary "
        f"and then over the {ranked.among:,} likeliest of them, as its work is limited"
    )


def _with_the_rest(
    pursuit: Pursuit, blocks: Sequence[Block], telling: Sequence[Block], how: tuple[Knowledge, Meter]
) -> tuple[list[int], str]:
    """The chosen tokens, then what the blocks without a say hold: such as B rows of a first round."""
    others = [block for block in blocks if not any(block is informative for informative in telling)]
    if not others:
        return pursuit.ranking, ""
    known, meter = how
    taken, rest = set(pursuit.chosen), sparse_bayes(others, known.prior, meter)
    return pursuit.chosen + [token for token in rest.ranking if token not in taken], note_of(rest)


def recover(views: Sequence[View]) -> Guess | NotApplicable:
    """What the updates of one node in several rounds show together; the tokens are those of all of them.

    Args:
        views: one or more views of the same base; the number of tokens of the last one is assumed for all.
    """
    blocks = joined(views)
    if isinstance(blocks, NotApplicable):
        return blocks
    known, meter = views[-1].knowledge, Meter()
    ranking = sparse_recovery(blocks, known, views[-1].tokens + len(known.special), meter)
    return guess_of(ranking, known, meter)


def guess_of(recovered: Ranking, known: Knowledge, meter: Meter) -> Guess:
    """A ranking as a guess: without the special tokens, and with the work behind it."""
    certain = sum(token not in known.special for token in recovered.tokens[: recovered.claimed])
    near = "" if known.approximation is None else ", approximate atoms"
    left = [token for token in recovered.tokens if token not in known.special]
    note = "; ".join(part for part in (known.approximation, recovered.note) if part)
    return Guess(left, certain, recovered.method + near, work=meter.work, note=note)


def joined(views: Sequence[View]) -> list[Block] | NotApplicable:
    """The blocks of several views; rows over the same dictionary become one block."""
    observed = [observations(view) for view in views]
    parts = [part for part in observed if not isinstance(part, NotApplicable)]
    if not parts:
        return next(part for part in observed if isinstance(part, NotApplicable))
    merged: list[Block] = []
    for block in (block for part in parts for block in part):
        same = next((i for i, old in enumerate(merged) if _share_atoms(old, block)), None)
        if same is None:
            merged.append(block)
        else:
            merged[same] = replace(merged[same], rows=np.concatenate([merged[same].rows, block.rows]))
    return merged


def _share_atoms(first: Block, second: Block) -> bool:
    return first.atoms is second.atoms or np.array_equal(first.atoms, second.atoms)
