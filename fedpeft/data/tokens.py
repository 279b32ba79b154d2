"""From records to token ids and loss weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import DataConfig, Task
from fedpeft.config.template import PROMPT, Template
from fedpeft.data.chat_tokens import ChatIds, chat_ids
from fedpeft.data.control_tokens import Encoder
from fedpeft.data.records import Notes, Record
from fedpeft.errors import DataError

CUT_PROMPT = "longer than data.max_length = {most} tokens, so that the left of the prompt is cut off"
CUT_ANSWER = "whose answer alone is longer than data.max_length = {most} tokens, so that its end is cut off"
NO_START = "whose first token is not trained, as neither a prompt nor a start token stands before it"
UNKNOWN = "with text that the tokenizer reads as unknown tokens"


@dataclass(frozen=True)
class Example:
    """One tokenised record.

    Attributes:
        ids: token ids, int64, shape ``(T,)``.
        weights: loss weight of token t as a target, float32, shape ``(T,)``; the first is 0, as nothing
            predicts it. All 0 for sequence classification.
        label_index: place of the completion among the labels, -1 without labels.
        prompt_length: number of leading tokens that belong to the prompt.
        person: whose privacy the record is, where the data name it.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    label_index: int = -1
    prompt_length: int = 0
    person: str | None = None

    @property
    def target(self) -> int:
        """Class of a sequence-classification example."""
        return self.label_index


def tokenise(
    records: Sequence[Record],
    tokenizer: Any,
    cfg: DataConfig,
    task: Task = "causal-lm",
    labels: Sequence[str] | None = None,
    faults: list[str] | None = None,
) -> list[Example]:
    """Token ids and loss weights of records.

    Prompt and completion are tokenised apart, as at inference. What the tokenizer itself puts before a text
    (often a beginning-of-sequence token) leads; a chat has that of its template. A completion ends with the
    end-of-sequence token, an answer of a chat with its template's end of turn. Names of control tokens in a
    record's text are text, in ``cfg.template`` the tokens. A record longer than ``cfg.max_length`` loses the
    left of its prompt, and a completion that leaves no space for one prompt token its right.

    Args:
        records: what to tokenise.
        tokenizer: a Hugging Face tokenizer.
        cfg: template, maximal length, prompt weight, and which answers of a chat bear loss.
        task: head of the model; sequence classification sees the prompt only.
        labels: classes in agreed order; needed for sequence classification.
        faults: None: a record that cannot be tokenised is an error. A list: such records are left out, each
            with its cause in the list.

    Raises:
        DataError: a refused chat, an unknown label or nothing to predict; names file and line of the record.
    """
    frame = _Frame.of(tokenizer, cfg, Notes())
    examples: list[Example] = []
    for place, example in _tokenised(records, frame, task, labels):
        if isinstance(example, Example):
            examples.append(example)
        elif faults is None:
            raise DataError(f"{place}: {example}")
        else:
            faults.append(f"{place}: {example}")
    return examples


def check_records(
    records: Sequence[Record],
    tokenizer: Any,
    cfg: DataConfig,
    task: Task = "causal-lm",
    labels: Sequence[str] | None = None,
) -> Notes:
    """Tokenise records as `tokenise` does and keep none; the way to learn before a run what it would meet.

    Returns:
        What a user should hear: of the chat template, of records that are cut, and of text that is lost.

    Raises:
        DataError: as `tokenise`.
    """
    frame = _Frame.of(tokenizer, cfg, Notes())
    for place, example in _tokenised(records, frame, task, labels):
        if not isinstance(example, Example):
            raise DataError(f"{place}: {example}")
    return frame.notes


def _tokenised(
    records: Sequence[Record], frame: _Frame, task: Task, labels: Sequence[str] | None
) -> Iterator[tuple[str, Example | str]]:
    """Of each record its place, and its example or why there is none."""
    places = {label: index for index, label in enumerate(labels or ())}
    if task == "sequence-classification" and not places:
        raise DataError("sequence classification needs the list of labels; none was given")
    for number, record in enumerate(records, 1):
        yield record.place or f"record {number}", _example_or_cause(record, frame, task, places)


@dataclass(frozen=True)
class _Frame:
    """What surrounds the text of every record."""

    encoder: Encoder
    cfg: DataConfig
    template: Template
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eos: tuple[int, ...]
    unknown: int | None
    notes: Notes

    @classmethod
    def of(cls, tokenizer: Any, cfg: DataConfig, notes: Notes) -> _Frame:
        eos: int | None = tokenizer.eos_token_id
        prefix, suffix = surroundings(tokenizer)
        ends = () if eos is None else (eos,)
        unknown = tokenizer.unk_token_id  # which some tokenizers have for an end or padding too
        unknown = None if unknown in (eos, tokenizer.bos_token_id, tokenizer.pad_token_id) else unknown
        template = Template.parse(cfg.template)
        return cls(Encoder.of(tokenizer), cfg, template, prefix, suffix, ends, unknown, notes)

    def note(self, head: int, parts: ChatIds, most: int) -> None:
        """Note what of a record is lost, of which at most ``most`` tokens stand for prompt and answer."""
        answer, prompt = len(parts.answer), head + len(parts.prompt)
        problems = {
            CUT_ANSWER: answer >= most and answer > 0,
            CUT_PROMPT: answer < most < answer + prompt,
            NO_START: answer > 0 and not prompt,
            UNKNOWN: self.unknown is not None and self.unknown in (*parts.prompt, *parts.answer),
        }
        for problem, is_there in problems.items():
            if is_there:
                self.notes.records[problem.format(most=self.cfg.max_length)] += 1

    def encode(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of parts as one text; of each whether it is a record's, which yields no control token."""
        text = "".join(part for part, _ in parts)
        if spans := self.encoder.names_in(parts):
            return self.encoder.without_names(text, spans)
        return list(self.encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def surroundings(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and after a text."""
    framed = tuple(tokenizer("a")["input_ids"])
    plain = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return (), ()


def _example_or_cause(record: Record, frame: _Frame, task: Task, places: dict[str, int]) -> Example | str:
    """A record's example, or why there is none."""
    try:
        return _example(record, frame, task, places)
    except DataError as error:
        return str(error)
    except Exception as error:  # tokenizers fail in their own ways, and repeat the text
        return f"the tokenizer of the base fails on it ({type(error).__name__})"


def _example(record: Record, frame: _Frame, task: Task, places: dict[str, int]) -> Example:
    label = places.get(record.completion, -1)
    if places and label < 0:
        raise DataError(f"its label is not one of the {len(places)} agreed labels")
    head, parts = _parts(record, frame)
    if task == "sequence-classification":
        most = frame.cfg.max_length - len(frame.suffix)
        frame.note(len(head), ChatIds(parts.prompt, parts.trained, []), most)
        ids = [*_cut(head, parts.prompt, most), *frame.suffix]
        if not ids:
            raise DataError("its prompt is empty")
        return Example(
            np.array(ids, np.int64), np.zeros(len(ids), np.float32), label, len(ids), record.person
        )
    frame.note(len(head), parts, frame.cfg.max_length)
    completion = parts.answer[: frame.cfg.max_length - 1]
    most = frame.cfg.max_length - len(completion)
    prompt = _cut(head, parts.prompt, most)
    trained = np.array(_cut([False] * len(head), parts.trained, most), bool)
    weights = np.full(len(prompt) + len(completion), 1.0, np.float32)
    weights[: len(prompt)] = np.where(trained, 1.0, frame.cfg.prompt_weight)
    weights[:1] = 0.0
    if not weights.any():
        raise DataError("it has no token to predict; give it a prompt and a completion")
    return Example(np.array(prompt + completion, np.int64), weights, label, len(prompt), record.person)


def _parts(record: Record, frame: _Frame) -> tuple[list[int], ChatIds]:
    """Leading special tokens; prompt and completion."""
    if record.messages is not None:
        every = frame.cfg.assistant_turns == "all"
        chat = chat_ids(record, frame.encoder, all_turns=every, notes=frame.notes)
        start = len(frame.prefix) if tuple(chat.prompt[: len(frame.prefix)]) == frame.prefix else 0
        return chat.prompt[:start], ChatIds(chat.prompt[start:], chat.trained[start:], chat.answer)
    prompt = frame.encode(_prompt(record, frame.template))
    answer = frame.encode([(record.completion, True), (frame.template.constants[-1], False)])
    ends = [] if tuple(answer[-1:]) == frame.eos else list(frame.eos)  # a template may have written it
    return list(frame.prefix), ChatIds(prompt, [False] * len(prompt), answer + ends)


def _prompt(record: Record, template: Template) -> list[tuple[str, bool]]:
    """The parts of the text before the answer, and of each whether it is the record's."""
    whole = ((PROMPT, record.prompt),)  # of a template of its own, which may be another than the run's
    texts = dict(whole if template.is_plain else record.fields or whole)
    if missing := [name for name in template.fields[:-1] if name not in texts]:
        raise DataError(f"it has no column {missing[0]!r}, which data.template names")
    parts = zip(template.constants, template.fields[:-1], strict=False)
    joined = [part for constant, name in parts for part in ((constant, False), (texts[name], True))]
    return [*joined, (template.constants[-2], False)]


def _cut(head: list[Any], prompt: list[Any], most: int) -> list[Any]:
    """The head and the rightmost items of the prompt, at most ``most`` in all."""
    keep = max(0, most - len(head))
    return (head + (prompt[-keep:] if keep else []))[:most]
