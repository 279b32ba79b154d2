"""Greedy answers of a causal model to the prompts of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from fedpeft.bases.load import quiet
from fedpeft.bases.probe import positions_of
from fedpeft.data import Example
from fedpeft.errors import ConfigError, DataError
from fedpeft.progress_reports import each
from fedpeft.training.modes import steady

PROMPTS_AT_ONCE = 16
TOLERANCE = 1e-3
"""Of logits, relative to the largest: what padding on the left may change."""
_PADDING = 3

Tokens = list[int]


@dataclass(frozen=True)
class Answers:
    """What a model answers.

    Attributes:
        texts: of each example, without special tokens.
        unfinished: how many reached the limit of new tokens.
    """

    texts: tuple[str, ...]
    unfinished: int


def generate(model: Any, tokenizer: Any, examples: Sequence[Example], max_new_tokens: int) -> Answers:
    """The most probable token after each prompt, and so on until the end of the answer.

    Whatever the base's generation settings say, nothing is drawn and nothing is penalised: the same examples
    give the same answers. The work is linear in the number of examples. Prompts are padded on the left where
    that changes nothing; else a batch holds prompts of one length.

    Args:
        model: a causal model, with an adapter or without.
        tokenizer: its tokenizer.
        examples: the prompts; of the answers that they hold only the end is looked at.
        max_new_tokens: at most so many tokens an answer.

    Raises:
        DataError: no examples.
        ConfigError: a prompt and so many tokens are more than the model has positions for.
    """
    if not examples:
        raise DataError("nothing to answer: the held-out set is empty")
    prompts = [example.ids[: max(example.prompt_length, 1)].tolist() for example in examples]
    _check_positions(model, max(map(len, prompts)), max_new_tokens)
    greedy = _Greedy(model, tokenizer.pad_token_id, _ends(model, tokenizer, examples))
    answers: list[Tokens] = [[] for _ in prompts]
    with steady(model), torch.no_grad(), quiet():
        model.generation_config = type(model.generation_config)()  # `steady` puts the base's own back
        batches = list(_batches(prompts, padded=greedy.takes_padding(prompts)))
        for batch in each(batches, "batch of answers"):
            tokens = greedy.answers([prompts[place] for place in batch], max_new_tokens)
            for place, answer in zip(batch, tokens, strict=True):
                answers[place] = answer
    # of an example without a prompt its first token was given
    starts = [prompt[example.prompt_length :] for prompt, example in zip(prompts, examples, strict=True)]
    texts = (tokenizer.decode(s + t, skip_special_tokens=True) for s, t in zip(starts, answers, strict=True))
    return Answers(tuple(texts), sum(len(tokens) == max_new_tokens for tokens in answers))


@dataclass(frozen=True)
class _Greedy:
    """A model that answers greedily.

    Attributes:
        model: steady, without generation settings of its own.
        pad: id of the padding token.
        ends: ids of the tokens that end an answer.
    """

    model: Any
    pad: int
    ends: frozenset[int]

    def answers(self, prompts: Sequence[Tokens], most: int) -> list[Tokens]:
        """At most so many tokens after each prompt, without the one that ends the answer."""
        length = max(map(len, prompts))
        ids = self._padded(prompts, length)
        rows = self._generated(*ids, most, eos_token_id=sorted(self.ends) or None).sequences[:, length:]
        return [list(self._upto_end(row)) for row in rows.tolist()]

    def takes_padding(self, prompts: Sequence[Tokens]) -> bool:
        """Whether padding on the left changes none of the logits of a prompt and of the token after it."""
        shortest = min(prompts, key=len)
        if all(len(prompt) == len(shortest) for prompt in prompts):
            return True
        alone = self._logits([shortest], len(shortest))
        padded = self._logits([shortest], len(shortest) + _PADDING)
        return float((alone - padded).abs().max()) <= TOLERANCE * float(alone.abs().max())

    def _logits(self, prompts: Sequence[Tokens], length: int) -> torch.Tensor:
        ids, mask = self._padded(prompts, length)
        return torch.stack(self._generated(ids, mask, 2, output_logits=True).logits).float()

    def _generated(self, ids: torch.Tensor, mask: torch.Tensor, most: int, **options: Any) -> Any:
        return self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.pad,
            return_dict_in_generate=True,
            **options,
        )

    def _padded(self, prompts: Sequence[Tokens], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64, shape ``(prompts, length)``."""
        device = next(self.model.parameters()).device
        rows = [[self.pad] * (length - len(prompt)) + prompt for prompt in prompts]
        masks = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(rows, device=device), torch.tensor(masks, device=device)

    def _upto_end(self, tokens: Sequence[int]) -> Iterator[int]:
        for token in tokens:
            if token in self.ends:
                return
            yield token


def _ends(model: Any, tokenizer: Any, examples: Sequence[Example]) -> frozenset[int]:
    """The end of text, what the base names as such, and the special token that true answers end with."""
    named: Any = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    # a template may write a line break after the end of a turn
    last = {int(token) for example in examples for token in example.ids[example.prompt_length :][-2:]}
    return frozenset(ends | (special & last))


def _batches(prompts: Sequence[Tokens], padded: bool) -> Iterator[list[int]]:
    """Places of the prompts of each batch, shortest first; without padding of one length."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    groups = [order] if padded else [list(g) for _, g in groupby(order, key=lambda i: len(prompts[i]))]
    for group in groups:
        for start in range(0, len(group), PROMPTS_AT_ONCE):
            yield group[start : start + PROMPTS_AT_ONCE]


def _check_positions(model: Any, longest: int, max_new_tokens: int) -> None:
    positions = positions_of(model)
    if positions is not None and longest + max_new_tokens > positions:
        raise ConfigError(
            f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} are above the {positions} "
            f"positions of the base: give --max-new-tokens at most {max(positions - longest, 0)}, or shorter "
            "prompts"
        )
