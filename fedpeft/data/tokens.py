"""From records to token ids and loss weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import DataConfig, Task
from fedpeft.data.records import Record
from fedpeft.errors import DataError

Messages = tuple[tuple[str, str], ...]


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

    Prompt and completion are tokenised apart, as they are at inference. The tokens that the tokenizer
    itself puts before a text (often a beginning-of-sequence token) lead; a chat has those of its template.
    The completion ends with the end-of-sequence token. A record longer than ``cfg.max_length`` loses the
    left of its prompt, and a completion that leaves no space for one prompt token loses its right.

    Args:
        records: what to tokenise.
        tokenizer: a Hugging Face tokenizer.
        cfg: template, maximal length and prompt weight.
        task: head of the model; sequence classification sees the prompt only.
        labels: classes in agreed order; needed for sequence classification.
        faults: None: a record that cannot be tokenised is an error. A list: such records are left out,
            whatever tokenizer or template made of them, each with its cause in the list.

    Raises:
        DataError: a template without its two fields, a chat without a chat template, an unknown label
            or a record without a token to predict.
    """
    places = {label: index for index, label in enumerate(labels or ())}
    if task == "sequence-classification" and not places:
        raise DataError("sequence classification needs the list of labels; none was given")
    frame = _Frame.of(tokenizer, cfg)
    examples: list[Example] = []
    for number, record in enumerate(records, 1):
        try:
            examples.append(_example(record, number, frame, task, places))
        except Exception as error:  # tokenizers and templates fail in their own ways, and repeat the text
            if faults is None:
                raise
            known = isinstance(error, DataError)
            faults.append(str(error) if known else f"record {number}: {type(error).__name__}")
    return examples


@dataclass(frozen=True)
class _Frame:
    """What surrounds the text of every record."""

    tokenizer: Any
    max_length: int
    prompt_weight: float
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eos: tuple[int, ...]
    template: tuple[str, str, str]

    @classmethod
    def of(cls, tokenizer: Any, cfg: DataConfig) -> _Frame:
        eos: int | None = tokenizer.eos_token_id
        prefix, suffix = _surroundings(tokenizer)
        return cls(
            tokenizer,
            cfg.max_length,
            cfg.prompt_weight,
            prefix,
            suffix,
            () if eos is None else (eos,),
            _template(cfg.template),
        )

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _surroundings(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and after a text."""
    framed = tuple(tokenizer("a")["input_ids"])
    plain = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(framed) - len(plain) + 1):
        if plain and framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return (), ()


def _template(text: str) -> tuple[str, str, str]:
    """The text before the prompt, between prompt and completion, and after it."""
    before, found_prompt, rest = text.partition("{prompt}")
    between, found_completion, after = rest.partition("{completion}")
    if not (found_prompt and found_completion):
        raise DataError(f"data.template {text!r} must hold {{prompt}} and then {{completion}}, once each")
    return before, between, after


def _example(record: Record, number: int, frame: _Frame, task: Task, places: dict[str, int]) -> Example:
    label = places.get(record.completion, -1)
    if places and label < 0:
        raise DataError(f"record {number}: its label is not one of the {len(places)} agreed labels")
    head, prompt, completion = _parts(record, frame)
    if task == "sequence-classification":
        ids = [*_cut(head, prompt, frame.max_length - len(frame.suffix)), *frame.suffix]
        return _checked(
            Example(np.array(ids, np.int64), np.zeros(len(ids), np.float32), label, len(ids), record.person),
            number,
        )
    completion = completion[: frame.max_length - 1]
    head = _cut(head, prompt, frame.max_length - len(completion))
    weights = np.full(len(head) + len(completion), 1.0, np.float32)
    weights[: len(head)] = frame.prompt_weight
    weights[:1] = 0.0
    ids = np.array(head + completion, np.int64)
    return _checked(Example(ids, weights, label, len(head), record.person), number, needs_target=True)


def _parts(record: Record, frame: _Frame) -> tuple[list[int], list[int], list[int]]:
    """Leading special tokens, prompt and completion."""
    if record.messages is not None:
        return _chat_parts(record.messages, frame)
    before, between, after = frame.template
    prompt = frame.encode(before + record.prompt + between)
    return list(frame.prefix), prompt, [*frame.encode(record.completion + after), *frame.eos]


def _chat_parts(messages: Messages, frame: _Frame) -> tuple[list[int], list[int], list[int]]:
    if not getattr(frame.tokenizer, "chat_template", None):
        raise DataError(
            "the tokenizer has no chat template; use a chat base, or prompt and completion columns"
        )
    chat = [{"role": role, "content": content} for role, content in messages]
    render = frame.tokenizer.apply_chat_template
    prompt = list(render(chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=False))
    whole = list(render(chat, tokenize=True, return_dict=False))
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
    else:
        completion = [*frame.encode(messages[-1][1]), *frame.eos]
    start = len(frame.prefix) if tuple(prompt[: len(frame.prefix)]) == frame.prefix else 0
    return prompt[:start], prompt[start:], completion


def _cut(head: list[int], prompt: list[int], most: int) -> list[int]:
    """The head and the rightmost prompt tokens, at most ``most`` in all."""
    keep = max(0, most - len(head))
    return (head + (prompt[-keep:] if keep else []))[:most]


def _checked(example: Example, number: int, needs_target: bool = False) -> Example:
    if needs_target and not example.weights.any():
        raise DataError(f"record {number}: it has no token to predict; give it a prompt and a completion")
    if not needs_target and not len(example.ids):
        raise DataError(f"record {number}: its prompt is empty")
    return example
