"""Where records hold what must not come out again: e-mail addresses, numbers, dates, names.

A pattern finds what looks like personal data: it misses what has no such form, and finds order numbers too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fedpeft.data import Example, Record

if TYPE_CHECKING:
    from fedpeft_attacks.memory.span_likelihood import Span

_LEAST_DIGITS = 6
_PATTERN = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"  # e-mail
    r"|\+?\d[\d /().-]{4,}\d"  # phones, ids, dates
)


def secrets_of(record: Record) -> list[str]:
    """E-mail addresses, numbers and dates of at least six digits, and the person's name, as they occur."""
    text = _text(record)
    matches = [match.group() for match in _PATTERN.finditer(text) if _is_secret(match.group())]
    named = [record.person] if record.person and record.person in text else []
    return list(dict.fromkeys([*matches, *named]))


def spans_of(record: Record, example: Example, tokenizer: Any) -> Iterator[Span]:
    """The tokens of each secret of a record, where they first occur.

    A token that holds a secret's beginning or end belongs to it. What the record lost to ``max_length`` is
    left out, and so is what nothing stands before.

    Args:
        record: the record.
        example: the same, tokenised.
        tokenizer: of the base.
    """
    from fedpeft_attacks.memory.span_likelihood import Span  # whose package imports this module

    ids = example.ids.tolist()
    ends = _ends(ids, tokenizer)
    text = tokenizer.decode(ids)
    for secret in secrets_of(record):
        at = text.find(secret)
        if at < 0:
            continue
        start = next(place for place, end in enumerate(ends) if end > at)
        end = next(place for place, end in enumerate(ends) if end >= at + len(secret)) + 1
        if start >= 1:
            yield Span(tuple(ids), start, end)


def _text(record: Record) -> str:
    if record.messages is not None:
        return "\n".join(text for _, text in record.messages)
    return f"{record.prompt}\n{record.completion}"


def _is_secret(text: str) -> bool:
    return "@" in text or sum(character.isdigit() for character in text) >= _LEAST_DIGITS


def _ends(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Where in the decoded text each token ends, in characters."""
    return [len(tokenizer.decode(ids[: place + 1])) for place in range(len(ids))]
