"""Planting canaries: made-up secrets in the training records of simulated nodes (`audit.canaries`).

Everything is drawn from the run's seed. A coin for each canary decides whether it is trained on; who was in
and who was out is written beside the node's taps and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

from fedpeft.data import Record
from fedpeft.rng import stream
from fedpeft_attacks.memory.canaries import SPACE, Canary, spelled
from fedpeft_simulations.embedded.people import make_person, source

TIMES = (1, 8, 32)
"""Copies of the first, second, third canary, and so on in turn; each copy is a record like any other."""

_ENDING = 32


def draw_canaries(
    count: int, seed: int, node: str, records: Sequence[Record], labelled: bool
) -> list[Canary]:
    """Canaries of one node, in the shape of its records.

    Where completions are labels, the secret stands in the prompt, as personal data of such records do, and
    the canary borrows a label; a run with ``data.prompt_weight = 0`` then never trains on secrets, real ones
    included. Elsewhere the secret is the completion.

    Args:
        count: how many.
        seed: the run's.
        node: its name; each node has a stream of its own.
        records: its training records, at least one.
        labelled: whether completions are labels.
    """
    rng, names = stream(seed, 0, node, "canaries"), names_of(count, seed, node, records)
    ending, canaries = ending_of(records), list[Canary]()
    for name, times in zip(names, islice(cycle(TIMES), count), strict=True):
        model, secret = records[int(rng.integers(len(records)))], spelled(int(rng.integers(SPACE)))
        record = _record(model, name, secret, ending if labelled else None)
        canaries.append(Canary(record, secret, times, bool(rng.integers(2))))
    return canaries


def planted(records: Sequence[Record], canaries: Sequence[Canary]) -> list[Record]:
    """The records, and after them the canaries that are trained on, each as often as it says."""
    return [*records, *(canary.record for canary in canaries if canary.trained for _ in range(canary.times))]


def names_of(count: int, seed: int, node: str, records: Sequence[Record]) -> list[str]:
    """Names of invented persons, each of one canary and of no record."""
    fake, taken = source(seed, node, "canaries"), {record.person for record in records}
    names: list[str] = []
    while len(names) < count:
        name = make_person(fake, "private").name
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def _record(model: Record, name: str, secret: str, ending: str | None) -> Record:
    """A record of this person and secret like the model; with an ending the secret is in the prompt."""
    asked, plain = f"Access code of {name}:", replace(model, person=name, turns=None, place="")
    if ending is not None and model.messages is None:
        return asking(plain, f"{asked} {secret}{ending}")
    chat = None if model.messages is None else (("user", asked), ("assistant", secret))
    answer = f" {secret}" if chat is None else secret
    return asking(replace(plain, completion=answer, messages=chat), asked)


def asking(model: Record, asked: str) -> Record:
    """The record with another prompt; of the columns of a template the last holds it."""
    if model.fields is None:
        return replace(model, prompt=asked)
    *others, last = (name for name, _ in model.fields)
    return replace(model, prompt=asked, fields=(*((name, "") for name in others), (last, asked)))


def ending_of(records: Sequence[Record]) -> str:
    """What all prompts end with, from the first mark that is no letter or digit on; at most 32 characters."""
    first, length = records[0].prompt, 0
    while length < min(_ENDING, len(first)) and all(
        record.prompt.endswith(first[-length - 1 :]) for record in records
    ):
        length += 1
    return re.sub(r"^\w+", "", first[len(first) - length :])
