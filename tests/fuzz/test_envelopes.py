"""Plain mutations with the fuzzer's checks, some thousands; `fuzz_envelopes.py` does millions by coverage."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.errors import EnvelopeError


@pytest.fixture(scope="module")
def envelopes():
    path = Path(__file__).with_name("envelopes.py")
    spec = importlib.util.spec_from_file_location("fuzz_envelopes_checks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def targets(envelopes):
    return envelopes.targets()


@pytest.mark.parametrize("mutations", [2000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_mutations_are_refused_or_canonical_in_bounded_time_and_memory(envelopes, targets, mutations):
    tally = envelopes.Tally()
    start = envelopes.seeds(targets)
    for data in start:
        envelopes.check(data, targets, tally)
    assert not tally.refused
    stream = envelopes.mutations(start, np.random.default_rng(mutations))
    for _ in range(mutations):
        envelopes.check(next(stream), targets, tally)
    assert tally.runs == len(start) + mutations
    assert len(tally.refused) == len(tally.accepted) == len({target.name for target in targets})
    assert tally.slowest <= envelopes.SLOWER and 0 < tally.memory <= 1


def faults(envelopes, target):
    """Parsers that each break one rule, by what the finding says."""
    honest = envelopes.decode_body(target.honest[-1], target.layout, target.codec)
    flipped, endless = (envelopes.Decoded(target.layout, honest.dense() * factor) for factor in (-1, np.nan))

    def wasteful(body, layout, codec):
        if body in target.honest:
            return honest
        np.ones(2_000_000)
        raise EnvelopeError("refused, but late")

    return {
        "ValueError": lambda body, layout, codec: np.zeros(2) @ np.zeros(3),
        "not written in": lambda body, layout, codec: flipped,
        "not finite": lambda body, layout, codec: endless,
        "times as long": wasteful,
    }


def test_what_breaks_the_rules_is_found(envelopes, targets, monkeypatch):
    target = next(t for t in targets if t.name == "sign" and t.layout.size == 300)
    targets = [replace(target, slowest=1e-6)]
    data = b"\0" + target.honest[-1][4:] + b"\0"
    for reason, fault in faults(envelopes, target).items():
        monkeypatch.setattr(envelopes, "decode_body", fault)
        with pytest.raises(envelopes.Finding, match=reason):
            envelopes.check(data, targets, envelopes.Tally())
    monkeypatch.setattr(envelopes, "SLOWER", np.inf)
    with pytest.raises(envelopes.Finding, match="holds"):
        envelopes.check(data, targets, envelopes.Tally())
