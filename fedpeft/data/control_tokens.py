"""Text of records to token ids, in which no text becomes a control token.

A tokenizer reads ``</s>`` or ``<|im_end|>`` in a text as the token of that name, so that the text of a user
could end a turn or begin another's. Such names in the text of a record are encoded as the characters that
they are; in a template, which is the run's own, they are the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.errors import DataError

_PRIVATE = range(0xE000, 0xF900)
"""Characters without a meaning, two of which mark what is text."""


@dataclass(frozen=True)
class Brackets:
    """Two characters that stand before and after the name of a control token that is text."""

    start: str
    end: str

    @classmethod
    def absent_from(cls, text: str) -> Brackets:
        """Two that the text does not hold."""
        free = (chr(code) for code in _PRIVATE if chr(code) not in text)
        return cls(next(free), next(free))

    def put(self, value: Any, names: re.Pattern[str]) -> Any:
        """A text, or all texts in lists and objects, with brackets around the names in them."""
        if isinstance(value, str):
            return names.sub(rf"{self.start}\g<0>{self.end}", value)
        if isinstance(value, dict):
            return {key: self.put(item, names) for key, item in value.items()}
        return [self.put(item, names) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that tells text from control tokens.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        special: names of its special tokens.
        written: these, and those of other added tokens that its chat template writes (``<tool_call>``), which
            an answer may hold and the text of others may not.
    """

    tokenizer: Any
    special: re.Pattern[str]
    written: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """The encoder of a tokenizer."""
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        template = str(getattr(tokenizer, "chat_template", None) or "")
        return cls(tokenizer, _any_of(special), _any_of({*special, *(t for t in added if t in template)}))

    def plain(self, text: str, **options: Any) -> list[int]:
        """Ids of a text as the tokenizer reads it, names of control tokens included."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def names_in(self, parts: Sequence[tuple[str, bool]]) -> list[tuple[int, int]]:
        """Where names of control tokens stand in parts that follow each other, if only in part in a record's.

        Args:
            parts: texts, and of each whether it is a record's.
        """
        names = [match.span() for match in self.special.finditer("".join(text for text, _ in parts))]
        return [span for span in names if _touches(span, parts)]

    def without_names(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a text in which what stands in the spans yields no control token."""
        brackets, pieces, at = Brackets.absent_from(text), list[str](), 0
        for start, end in spans:
            pieces += [text[at:start], brackets.start, text[start:end], brackets.end]
            at = end
        return self.bracketed("".join([*pieces, text[at:]]), brackets)

    def bracketed(self, text: str, brackets: Brackets, *, first: bool = True) -> list[int]:
        """Ids of a text in which brackets stand around what is no control token; a lone mark is left out.

        ``first``: whether nothing stands before it.
        """
        pieces = re.split(
            f"{brackets.start}([^{brackets.start}{brackets.end}]*){brackets.end}|[{brackets.start}{brackets.end}]",
            text,
        )
        ids = (self.plain if first else self.after)(pieces[0]) if pieces[0] else []
        for place, piece in enumerate(pieces[1:], 1):
            if piece:
                ids += self._as_text(piece) if place % 2 else self.after(piece)
        return ids

    def after(self, text: str, **options: Any) -> list[int]:
        """Ids of a text that stands after another: without what some tokenizers put before a first word."""
        line = self.plain("\n")
        ids = self.plain("\n" + text, **options)
        return ids[len(line) :] if ids[: len(line)] == line else self.plain(text, **options)

    def _as_text(self, name: str) -> list[int]:
        """Ids of the characters of a control token's name."""
        control = self.tokenizer.convert_tokens_to_ids(name)
        for ids in (self.after(name, split_special_tokens=True), self.after(name[:1]) + self.after(name[1:])):
            if control not in ids:
                return ids
        raise DataError(f"the tokenizer cannot write {name!r} as text; leave it out of the records")


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names, the longest first; of blanks none, which every text holds."""
    longest = sorted((name for name in names if name.strip()), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _touches(span: tuple[int, int], parts: Sequence[tuple[str, bool]]) -> bool:
    """Whether a part of the span is text of a record."""
    at = 0
    for part, is_text in parts:
        if is_text and at < span[1] and span[0] < at + len(part):
            return True
        at += len(part)
    return False
