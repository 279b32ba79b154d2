"""From a chat to token ids by the chat template of a base: what is asked and answered, where a turn ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fedpeft.data.chats import ANSWERS, UNTRAINED
from fedpeft.data.control_tokens import Brackets, Encoder
from fedpeft.data.records import Notes, Record
from fedpeft.errors import DataError

OWN_END = (
    "the template's prompt for an answer is no beginning of its whole chat, so answers are trained after "
    "that prompt, with the template's own end of turn"
)
EOS_END = (
    "the chat template does not show the answer as it is given; it is trained with the tokenizer's end of "
    "text, at which a server may not stop"
)
NO_END = "the chat template writes no end of turn after an answer; a model trained on it may not stop"
_PROBE = "0123456789"


@dataclass(frozen=True)
class ChatIds:
    """A tokenised chat.

    Attributes:
        prompt: ids of all that stands before the last answer, as at inference.
        trained: of each of them, whether it belongs to an earlier answer that is trained.
        answer: ids of the last answer with its end of turn.
    """

    prompt: list[int]
    trained: list[bool]
    answer: list[int]


def chat_ids(record: Record, encoder: Encoder, *, all_turns: bool, notes: Notes) -> ChatIds:
    """Token ids of a chat.

    An answer begins where the template's prompt for one ends and ends with the template's own end of turn. No
    text of a message becomes a control token.

    Args:
        record: a chat.
        encoder: of the base's tokenizer.
        all_turns: whether earlier answers are trained too.
        notes: receives what is to be known of the template.

    Raises:
        DataError: there is no template, it refuses the chat, or it does not show an earlier answer.
    """
    written = _Written.of(record, encoder)
    last = len(written.messages) - 1
    prompt, answer = written.upto(last, asked=True), written.answer(notes)
    cuts = [0]
    for place in written.trained()[:-1] if all_turns else ():
        cuts += written.span(place, prompt, cuts[-1])
    cuts.append(len(prompt))
    texts = [prompt[start:end] for start, end in pairwise(cuts)]
    pieces = _pieces([*texts, answer], encoder, written.brackets)
    trained = [bool(number % 2) for number, piece in enumerate(pieces[:-1]) for _ in piece]
    return ChatIds([token for piece in pieces[:-1] for token in piece], trained, pieces[-1])


def _pieces(texts: Sequence[str], encoder: Encoder, brackets: Brackets) -> list[list[int]]:
    """Ids of consecutive texts; tokens are those of the whole where none stands across a border."""
    ids, text, pieces = list[int](), "", list[list[int]]()
    for piece in texts:
        text += piece
        whole = encoder.bracketed(text, brackets)
        fresh = whole[len(ids) :]
        if whole[: len(ids)] != ids:
            fresh = encoder.bracketed(piece, brackets, first=False)
        pieces.append(fresh)
        ids = ids + fresh
    return pieces


@dataclass(frozen=True)
class _Written:
    """A chat whose texts are bracketed, and how the template writes its beginnings."""

    encoder: Encoder
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    brackets: Brackets

    @classmethod
    def of(cls, record: Record, encoder: Encoder) -> _Written:
        if not getattr(encoder.tokenizer, "chat_template", None):
            raise DataError(
                "the tokenizer of the base has no chat template; use a chat base, or prompt and "
                "completion columns"
            )
        messages, tools = record.chat()
        brackets = Brackets.absent_from(record.turns or "".join(text for _, text in record.messages or ()))
        bracketed = [
            brackets.put(message, encoder.special if message["role"] == ANSWERS else encoder.written)
            | {"role": message["role"]}
            for message in messages
        ]
        return cls(encoder, bracketed, brackets.put(tools, encoder.written), brackets)

    def trained(self) -> list[int]:
        """Places of the assistant's messages that bear loss."""
        return [
            place
            for place, message in enumerate(self.messages)
            if message["role"] == ANSWERS and UNTRAINED not in message
        ]

    def upto(self, count: int, *, asked: bool = False) -> str:
        """The first messages as text; ``asked``: with what the template puts before an answer."""
        return self._render(self.messages[:count], asked)

    def answer(self, notes: Notes) -> str:
        """The text of the last answer, with its end of turn."""
        last = len(self.messages) - 1
        asked, whole = self.upto(last, asked=True), self.upto(last + 1)
        text = self.messages[last].get("content") or ""
        if whole.startswith(asked):
            answer = whole[len(asked) :]
        elif (at := _place_of(whole, text)) >= 0:
            notes.records[OWN_END] += 1
            answer = whole[at:]
        elif (end := self._end_of_turn()) is not None:
            notes.records[OWN_END] += 1
            answer = text + end
        else:
            notes.records[EOS_END] += 1
            return text + (self.encoder.tokenizer.eos_token or "")
        if text.strip() and answer.endswith(text.strip()):
            notes.records[NO_END] += 1
        return answer

    def span(self, place: int, prompt: str, at: int) -> tuple[int, int]:
        """Where an earlier answer and its end of turn stand in the text before the last, from ``at`` on."""
        whole, text = self.upto(place + 1), self.messages[place].get("content") or ""
        asked = self.upto(place, asked=True) if place else ""
        starts = [len(asked)] if place and whole.startswith(asked) else []
        starts += [start] if (start := _place_of(whole, text)) >= 0 else []
        for start in starts:
            if prompt.startswith(whole) and start >= at:
                return start, len(whole)
            if (first := prompt.find(whole[start:], at)) >= 0:
                return first, first + len(whole) - start
        raise DataError(
            "the chat template of this base does not show an earlier answer as it is given; "
            "set data.assistant_turns = 'last'"
        )

    def _end_of_turn(self) -> str | None:
        """What the template writes after an answer whose text it shows."""
        message = {"role": ANSWERS, "content": _PROBE}
        whole = self._render([*self.messages[:-1], message], False)
        at = whole.rfind(_PROBE)
        return whole[at + len(_PROBE) :] if at >= 0 else None

    def _render(self, messages: list[dict[str, Any]], asked: bool) -> str:
        tokenizer = self.encoder.tokenizer
        try:
            return tokenizer.apply_chat_template(
                messages, tools=self.tools, add_generation_prompt=asked, tokenize=False
            )
        except Exception as error:  # a template may raise anything, with the text in it
            words, kind = str(error), type(error).__name__
        # its words are only repeated where they are the template's own
        reason = words if words and words in str(tokenizer.chat_template) else kind
        raise DataError(f"the chat template of this base refuses it: {reason}")


def _place_of(whole: str, text: str) -> int:
    """Where a text, or the text without the blanks around it, stands last; -1 if nowhere."""
    return max(whole.rfind(text), whole.rfind(text.strip())) if text.strip() else -1
