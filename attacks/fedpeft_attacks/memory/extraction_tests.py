"""What the adapter writes out: exposure of canaries, and secrets that come out when prompted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Record
from fedpeft_attacks.memory.canaries import SPACE
from fedpeft_attacks.memory.decoding import SAMPLES, Recovered
from fedpeft_attacks.memory.exposure import CANDIDATES, by_chance, candidate_spans, exposures
from fedpeft_attacks.memory.findings import MemoryFinding
from fedpeft_attacks.memory.released_model import ReleasedModel
from fedpeft_attacks.memory.span_likelihood import Span, read_spans
from fedpeft_attacks.memory.statistics import mean, share
from fedpeft_attacks.results.pii import spans_of


def canaries(target: ReleasedModel) -> Iterator[MemoryFinding]:
    """Exposure, over all canaries that were trained on and by number of copies, and extraction.

    Nothing where no canary with a secret was trained on or none was left out, or where the model writes no
    text.
    """
    planted = (target.material.trained, target.material.left_out)
    trained, left_out = ([canary for canary in part if canary.secret] for part in planted)
    if not (target.writes and trained and left_out):
        return
    spans, size = (
        candidate_spans([*trained, *left_out], target.encode, target.material.config.run.seed),
        len(trained),
    )
    adapter, base = target.both(lambda model: exposures(model, spans))
    for name, chosen in _by_copies([canary.times for canary in trained]).items():
        yield MemoryFinding(
            "canary-exposure",
            name,
            *mean(adapter[:size][chosen]),
            chance=by_chance(),
            base=float(base[:size][chosen].mean()),
            held_out=float(adapter[size:].mean()),
            count=int(chosen.sum()),
            others=len(left_out),
            unit="bits",
            method=f"rank among {CANDIDATES} other secrets, extrapolated where it is the first",
        )
    secrets = [group[0] for group in spans]
    yield from _recovered(target, "canaries", secrets[:size], secrets[size:])


def prompts(target: ReleasedModel) -> Iterator[MemoryFinding]:
    """Extraction of what looks like personal data in records, beside records that were not trained on."""
    if not target.writes:
        return
    kinds = (target.material.members, target.material.others)
    members, others = (_personal(target, _spread(records, target.effort.prompts)) for records in kinds)
    if members and others:
        yield from _recovered(target, "personal data", members, others)


def _by_copies(times: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """All canaries, and those of each number of copies where there are several."""
    copies = np.array(times)
    groups = {"canaries": copies > 0}
    if len(kinds := sorted(set(times))) > 1:
        groups |= {f"canaries, {kind} cop{'y' if kind == 1 else 'ies'}": copies == kind for kind in kinds}
    return groups


def _personal(target: ReleasedModel, records: Sequence[Record]) -> list[Span]:
    tokenizer = target.attached.base.tokenizer
    pairs = zip(records, target.examples(records), strict=True)
    return [span for record, example in pairs for span in spans_of(record, example, tokenizer)]


def _spread(records: Sequence[Record], most: int) -> Sequence[Record]:
    """At most so many, evenly over all."""
    return records[:: max(1, -(-len(records) // most))]


def _recovered(
    target: ReleasedModel, name: str, trained: Sequence[Span], held_out: Sequence[Span]
) -> Iterator[MemoryFinding]:
    """Shares of secrets that come out, by greedy decoding and among samples."""
    spans, size = [*trained, *held_out], len(trained)
    adapter, base = target.both(lambda model: Recovered.of(read_spans(model, spans)))
    chance = 1 / SPACE if name == "canaries" else 0.0
    sampled = f"one of {SAMPLES} samples at temperature 1, by its exact probability"
    for kind, estimate, tries, method in (
        ("greedy", share(adapter.greedy[:size]), 1, "greedy decoding"),
        ("sampled", mean(adapter.sampled[:size]), SAMPLES, sampled),
    ):
        recovered, without = getattr(adapter, kind), getattr(base, kind)
        yield MemoryFinding(
            "prompt-extraction",
            f"{name}, {kind}",
            *estimate,
            chance=tries * chance,
            base=float(without[:size].mean()),
            held_out=float(recovered[size:].mean()),
            count=size,
            others=len(held_out),
            unit="share",
            method=f"{method}, after what stands before the secret",
        )
