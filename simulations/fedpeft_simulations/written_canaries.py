"""Canaries that the base writes itself, so that they look like the data (``audit.canary_form = "written"``).

Each begins as a record of the node does and goes on with what the base writes, sampled hot: unlikely, and
text of the same kind all the same. A filter for outliers does not find it as it finds a code, and a person
can read in ``taps/canaries.json`` what was planted. Source: Mitchell and Andrew et al. 2026, "Advancing the
State-of-the-Art in Empirical Privacy Auditing" (arXiv:2606.10481); a beginning as in the data and an unlikely
end: Meeus et al. 2025, "The Canary's Echo" (arXiv:2502.14921).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedpeft.data import Record
from fedpeft.errors import ConfigError
from fedpeft.rng import stream
from fedpeft.training.modes import steady
from fedpeft_attacks.memory.canaries import Canary
from fedpeft_simulations.plant_canaries import TIMES, asking, ending_of, names_of

if TYPE_CHECKING:
    from fedpeft.bases import Base

HEAT = 1.3
"""Temperature of the sampling."""

FEWEST, MOST, WORDS = 8, 48, 4
"""Tokens that the base writes at least and at most; words of the record that it goes on from at least."""


def write_canaries_with(
    base: Base, count: int, seed: int, node: str, records: Sequence[Record], labelled: bool
) -> list[Canary]:
    """Canaries of one node, in the shape of its records, written by the base without an adapter.

    Where completions are labels the prompt is written, and the label is that of another record; elsewhere the
    completion is.

    Args:
        base: writes them; no adapter is attached.
        count: how many.
        seed: the run's.
        node: its name; each node has a stream of its own.
        records: its training records, at least one.
        labelled: whether completions are labels.

    Raises:
        ConfigError: the base writes no text.
    """
    if base.task != "causal-lm":
        needed = "audit.canary_form = 'written' needs a base that writes text"
        raise ConfigError(f"{needed}, and one for {base.task} does not; use 'codes'")
    rng, ending = stream(seed, 0, node, "written-canaries"), ending_of(records)
    canaries = list[Canary]()
    for name, times in zip(names_of(count, seed, node, records), islice(cycle(TIMES), count), strict=True):
        model, other = (records[int(rng.integers(len(records)))] for _ in range(2))
        plain = replace(model, person=name, turns=None, place="")
        if labelled and model.messages is None:
            words = model.prompt.removesuffix(ending).split()
            text = _go_on(base, " ".join(words[: max(WORDS, len(words) // 3)]), rng)
            record = asking(replace(plain, completion=other.completion), f"{text}{ending}")
        else:
            written = _go_on(base, model.prompt, rng).removeprefix(model.prompt).strip()
            chat = None if model.messages is None else (*model.messages[:-1], ("assistant", written))
            answer = written if chat else f" {written}"
            record = replace(plain, completion=answer, messages=chat)
        canaries.append(Canary(record, "", times, bool(rng.integers(2))))
    return canaries


def _go_on(base: Base, start: str, rng: np.random.Generator) -> str:
    """A text, and what the base writes after it; line ends and what only a tokenizer knows become spaces."""
    ids = list(base.tokenizer(start, add_special_tokens=False)["input_ids"])
    special = sorted(set(base.tokenizer.all_special_ids))
    written = _sampled(base.model, ids, int(rng.integers(FEWEST, MOST + 1)), special, rng)
    return f"{start} {' '.join(base.tokenizer.decode(written).split())}"


def _sampled(
    model: Any, ids: Sequence[int], count: int, never: Sequence[int], rng: np.random.Generator
) -> list[int]:
    """So many tokens after others, each drawn at `HEAT` from all tokens but some."""
    written, past = list[int](), None
    chunk = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with torch.no_grad(), steady(model):
        for _ in range(count):
            output = model(input_ids=chunk, past_key_values=past, use_cache=True)
            past, logits = output.past_key_values, output.logits[0, -1].double().cpu().numpy() / HEAT
            logits[list(never)] = -np.inf
            # the largest of logits with Gumbel noise is a draw from their softmax
            written.append(int(np.argmax(logits + rng.gumbel(size=len(logits)))))
            chunk = torch.tensor([written[-1:]], device=chunk.device)
    return written
