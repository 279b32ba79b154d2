"""What is public of every record of a run: how it begins, how it ends, and how much each token's loss counts.

All of it follows from the tokenizer and the run's agreed settings, so whoever is in the federation knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import DataConfig
from fedpeft.config.template import Template
from fedpeft.data.tokens import surroundings

Ids = tuple[int, ...]


@dataclass(frozen=True)
class RecordFrame:
    """How records are framed and weighted.

    Attributes:
        begin: tokens that lead every record; none where the tokenizer puts none before a text: then the
            first token of a record is unknown as well.
        head: first tokens of the template's text, which follow, except in a record that is cut.
        end: the token that ends every record; None: there is none.
        prompt_weight: weight of the loss of a prompt's tokens; that of the answer's is 1.
        markers: last tokens of the template's text between prompt and answer; none where it has no such text.
        answers: the answers that there are, with their end, where these are agreed labels.
        longest: tokens of the longest record.
    """

    begin: Ids = ()
    head: Ids = ()
    end: int | None = None
    prompt_weight: float = 1.0
    markers: Ids = ()
    answers: tuple[Ids, ...] = ()
    longest: int = 96

    @classmethod
    def of(cls, tokenizer: Any, data: DataConfig, labels: Sequence[str] = ()) -> RecordFrame:
        """Of a run.

        Args:
            tokenizer: of the base.
            data: the run's settings of data.
            labels: the agreed labels; empty: answers are free text.
        """
        end = tokenizer.eos_token_id
        ends = () if end is None else (int(end),)
        head, *_, between, last = Template.parse(data.template).constants
        answers = tuple((*_ids(tokenizer, label + last), *ends) for label in labels)
        return cls(
            begin=surroundings(tokenizer)[0],
            head=_shared(tokenizer, head + "one", head + "2 .") if head else (),
            end=None if end is None else int(end),
            prompt_weight=data.prompt_weight,
            markers=_shared(tokenizer, "one" + between, "2 ." + between, at_the_end=True) if between else (),
            answers=answers,
            longest=data.max_length,
        )

    @property
    def knows_answers(self) -> bool:
        """Whether it can be said where the answer of a record begins, or need not be."""
        return self.prompt_weight == 1.0 or bool(self.markers or self.answers)

    def weights(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Weight of each token's loss, shape ``(T,)``; the first is 0, as nothing predicts it.

        A record without an answer, such as one that is not yet written to its end, bears the prompt's weight,
        and where nobody knows where answers begin every token bears the same.
        """
        weights = np.ones(len(ids), np.float32)
        if self.knows_answers:
            weights[: self._answer_at(tuple(ids))] = self.prompt_weight
        weights[:1] = 0.0
        return weights

    def _answer_at(self, ids: Ids) -> int:
        """Place of the first token of the answer: after the last marker, or of an agreed answer."""
        size = len(self.markers)
        places = [at + size for at in range(len(ids) - size + 1) if ids[at : at + size] == self.markers]
        if size and places:
            return places[-1]
        ended = [len(ids) - len(answer) for answer in self.answers if ids[-len(answer) :] == answer]
        return min(ended, default=len(ids))


def _ids(tokenizer: Any, text: str) -> Ids:
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])


def _shared(tokenizer: Any, *texts: str, at_the_end: bool = False) -> Ids:
    """Known tokens that texts have in common at their start, or at their end."""
    unknown = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}
    order = -1 if at_the_end else 1
    columns = zip(*(_ids(tokenizer, text)[::order] for text in texts), strict=False)
    shared = (tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    return tuple(takewhile(lambda token: token not in unknown, shared))[::order]
