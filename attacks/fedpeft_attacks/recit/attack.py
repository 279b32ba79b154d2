"""The attack itself: token filter, then completion and pairing of records by the strengthened base.

Source: Xie et al., arXiv 2504.20570 (filter-based token extraction, token pairing, completion by prompting).
"""

from __future__ import annotations

from fedpeft_attacks.sequences import Bag, Budget, assemble_from
from fedpeft_attacks.tokens.matching_pursuit import matching_pursuit
from fedpeft_attacks.tokens.observations import observations
from fedpeft_attacks.views import Guess, NotApplicable, View

_EXPLAINED = 1e-2


def recit(view: View, budget: Budget | None = None) -> Guess | NotApplicable:
    """Recover whole records, and with them the personal data, from an update.

    Tokens are read from the first layer and used as a filter where they explain it; elsewhere nothing is
    filtered. The base that the coordinator handed out writes the records, token by token, under that filter
    and the spans of the later layers; gradients decide between records and pair their tokens
    (`fedpeft_attacks.sequences`). It is the same attack on any base; one that was strengthened with Personal
    Notes foresees most of a record, and what is left to search is the personal data.

    Args:
        view: holds the whole adapter's values, the model of the start, and how many records there were.
        budget: steps and length of the records.

    Returns:
        Records in `Guess.sequences`, certain where their gradient leaves nothing of what was observed.
    """
    start = view.knowledge.start
    if start is None or view.records < 1:
        return NotApplicable("it needs base and adapter of the start and the number of records")
    if view.layout.digest != start.attached.layout.digest:
        return NotApplicable("it needs the values of the whole adapter")
    tokens = _filter(view)
    assembled = assemble_from(view, Bag(tuple(tokens), len(tokens)), budget)
    written = list(dict.fromkeys(token for row in assembled.sequences for token in row))
    ranking = [token for token in dict.fromkeys([*tokens, *written]) if token not in view.knowledge.special]
    claimed = sum(token not in view.knowledge.special for token in tokens)
    filtered = "filtered" if tokens else "no filter"
    method = f"completion and pairing, {filtered}, unexplained {assembled.unexplained:.2f}"
    return Guess(ranking, claimed, method, assembled.sequences, assembled.certain, assembled.work)


def _filter(view: View) -> list[int]:
    """Tokens of the batch where a pursuit explains the first layer; none where it does not."""
    blocks = observations(view)
    if isinstance(blocks, NotApplicable) or view.knowledge.approximation is not None:
        return []
    pursuit = matching_pursuit(blocks, view.tokens + len(view.knowledge.special))
    return pursuit.chosen if pursuit.unexplained < _EXPLAINED else []
