"""Exposure: its law where nothing was seen, its tail, and canaries that a model was trained on."""

import numpy as np
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Record, tokenise
from fedpeft.errors import AuditError
from fedpeft.training import LocalPlan, train_local
from fedpeft_attacks.memory.canaries import (
    SPACE,
    Canary,
    canary_file,
    read_canaries,
    spelled,
    write_canaries,
)
from fedpeft_attacks.memory.exposure import by_chance, candidate_spans, exposure, exposures

LIMIT = DataConfig(max_length=64, prompt_weight=1.0)


def canary(index, trained=True, times=1):
    secret = spelled(int(np.random.default_rng(index).integers(SPACE)))
    record = Record(f"code of person {index}: {secret}.", " green", person=f"person {index}")
    return Canary(record, secret, times, trained)


def test_a_secret_that_nobody_saw_has_the_exposure_of_chance():
    ranks = [exposure(float(value), np.arange(255) + 0.5) for value in range(1, 255)]
    assert np.mean([*ranks, 0.0, 8.0]) == pytest.approx(by_chance(), abs=1e-9)
    assert by_chance(10**6 - 1) == pytest.approx(1 / np.log(2), abs=1e-4)


def test_ties_are_in_disfavour_of_the_secret():
    assert exposure(0.0, np.zeros(255)) == 0.0


def test_beyond_the_sample_the_tail_is_extended_within_its_bounds():
    """Exponential tails: the bits of a true secret beyond the sample are those of the law it was drawn by."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        others = rng.exponential(size=255)
        true = max(12 * np.log(2), float(others.max()) + 1e-6)
        found.append(exposure(true, others))
    assert np.median(found) == pytest.approx(12, abs=1)
    assert exposure(1e9, others) == pytest.approx(np.log2(SPACE))
    assert exposure(float(others.max()) + 1e-9, others) >= 8


def test_candidates_differ_from_the_secret_and_from_each_other():
    given = canary(3)
    records = given.candidates(255, np.random.default_rng(0))
    assert records[0] == given.record
    assert len({record.prompt for record in records}) == 256
    assert {record.completion for record in records} == {" green"}


def test_a_chat_canary_holds_another_secret_in_its_messages():
    record = Record("code of x:", "123456", messages=(("user", "code of x:"), ("assistant", "123456")))
    other = Canary(record, "123456", 1, True).holding("654321")
    assert (
        other.messages == (("user", "code of x:"), ("assistant", "654321")) and other.completion == "654321"
    )


def test_canaries_come_back_as_they_were_written(tmp_path):
    chat = Record("code of x:", "123456", messages=(("user", "code of x:"), ("assistant", "123456")))
    given = [canary(0), canary(1, times=8), canary(2, trained=False), Canary(chat, "123456", 32, False)]
    write_canaries(tmp_path / "a", given)
    assert read_canaries([tmp_path / "a", tmp_path / "b"]) == given
    canary_file(tmp_path / "a").write_text('{"in": [{"secret": "1"}], "out": []}')
    with pytest.raises(AuditError, match="run the federation again"):
        read_canaries([tmp_path / "a"])


def test_a_trained_canary_is_exposed_and_others_are_at_chance(tiny_llama, tiny_adapter):
    """Ten secrets that were not trained on: their mean exposure has standard deviation 0.45."""

    def encode(records):
        return [example.ids.tolist() for example in tokenise(records, tiny_llama.tokenizer, LIMIT)]

    canaries = [canary(index) for index in range(12)]
    spans = candidate_spans(canaries, encode, 0)
    plan = LocalPlan(steps=30, batch_size=2, lr=5e-2)
    examples = tokenise([one.record for one in canaries[:2]], tiny_llama.tokenizer, LIMIT)
    before = exposures(tiny_adapter.model, spans)
    train_local(tiny_adapter, examples, plan, np.random.default_rng(0))
    after = exposures(tiny_adapter.model, spans)
    assert after[:2].min() >= 8
    assert abs(before.mean() - by_chance()) < 2.2
    assert after[2:].mean() < by_chance() + 2.3
