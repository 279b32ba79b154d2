"""Known privacy bugs that no other test would notice; docs/privacy-bugs.md lists them all."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.config import build_config
from fedpeft.data import collate
from fedpeft.errors import ConfigError
from fedpeft.privacy import noise
from fedpeft.privacy.ledger import Ledger
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.secagg.shamir import PRIME, fresh_secret
from fedpeft.training.dp import dpsgd, per_example
from fedpeft_attacks.dp_audit import mechanism
from fedpeft_simulations.embedded.corpus import public_documents
from fedpeft_simulations.embedded.people import pool
from fedpeft_simulations.embedded.vocabulary import words

PLAN = PrivacyPlan(0.5, 1.1, 0.7, 3, 5, 2, 1e-5)


def test_sum_and_noise_are_float64_until_the_one_cast_at_the_end(toy, toy_examples, monkeypatch):
    """A sum or noise that is rounded before they are added shows in some bits."""
    attached, batch = toy(), collate(toy_examples(3), 0)
    drawn = np.random.default_rng(0).normal(size=attached.layout.size)
    monkeypatch.setattr(noise, "gaussian", lambda size, source: drawn[:size].copy())
    total, _ = per_example.clipped_sum(attached, batch, PLAN.clip)
    found = dpsgd.noisy_gradient(attached, [(batch, None)], dpsgd.Mechanism(PLAN))
    np.testing.assert_array_equal(found, ((total + 1.1 * 0.7 * drawn) / 3).astype(np.float32))


@pytest.mark.parametrize("split", [1, 2, 5])
def test_a_step_draws_its_noise_once_however_many_physical_batches_it_has(
    toy, toy_examples, monkeypatch, split
):
    """Neither skipped on batches that only accumulate, nor added for each of them."""
    attached, examples, drawn = toy(), toy_examples(5), []
    monkeypatch.setattr(noise, "gaussian", lambda size, source: drawn.append(size) or np.ones(size))
    batches = [(collate(examples[at : at + split], 0), None) for at in range(0, 5, split)]
    found = dpsgd.noisy_gradient(attached, batches, dpsgd.Mechanism(PLAN))
    total, _ = per_example.clipped_sum(attached, collate(examples, 0), PLAN.clip)
    np.testing.assert_allclose(found, (total + 1.1 * 0.7) / 3, atol=1e-6)
    assert drawn == [attached.layout.size]


def test_a_fork_after_the_first_draw_shares_no_noise():
    """A generator that is seeded once would go on alike in parent and child."""
    noise.gaussian(8)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.write(writer, noise.gaussian(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 64))
    os.close(reader)
    os.close(writer)
    assert not np.intersect1d(theirs, noise.gaussian(8)).size


def test_fresh_secrets_fill_the_field():
    """Flower's pairwise seeds never had more than 28 bits; of 200 draws each bit is set but with 2^-200."""
    drawn = [int.from_bytes(fresh_secret(), "little") for _ in range(200)]
    seen = 0
    for secret in drawn:
        assert 0 <= secret < PRIME
        seen |= secret
    assert seen.bit_length() == 255 and seen == 2**255 - 1
    assert len(set(drawn)) == 200


def test_the_head_that_leaves_a_node_does_not_tell_when_an_entry_was_written(tmp_path):
    """Times tell how many records were drawn; the hash over them is salted."""
    ledgers = [Ledger(tmp_path / name, clock=lambda: 1e9) for name in ("one", "other")]
    for ledger in ledgers:
        ledger.started(ledger.reserve("patients", "run", 1, PLAN, 5))
    first, second = (ledger.entries() for ledger in ledgers)
    for mine, theirs in zip(first, second, strict=True):
        assert mine.hash != theirs.hash
        salts = mine.body.pop("salt"), theirs.body.pop("salt")
        assert salts[0] != salts[1] and {len(salt) for salt in salts} == {32}
        assert json.dumps(mine.body) == json.dumps(theirs.body)


def test_one_reservation_counts_each_of_its_steps(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("patients", "run", 1, PLAN, 5)
    ledger.reserve("patients", "run", 2, PLAN, 3)
    assert [entry.body["event"]["repeats"] for entry in ledger.entries()] == [5, 3]
    assert PLAN.event() == replace(PLAN, rounds=1).event()._replace(repeats=10)


def test_the_text_of_the_shared_tokenizer_names_no_private_person():
    private = {name.lower() for name in (*pool("private").first_names, *pool("private").surnames)}
    seen = words(" ".join(document.whole for document in public_documents(400, 0)))
    public = {name.lower() for name in pool("public").first_names}
    assert seen & public and not seen & private


@pytest.mark.parametrize("trust", ["central", "distributed"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_residual_never_goes_with_the_privacy_of_whole_nodes(trust, adaptive):
    """What the clip cut off would come back later, round by round."""
    privacy = {"unit": "node", "trust": trust, "epsilon": 8.0, "adaptive_clip": adaptive}
    with pytest.raises(ConfigError, match="past the clip"):
        build_config({"privacy": privacy, "exchange": {"up": {"error_feedback": True}}})


@pytest.mark.parametrize("claimed", [1.0, 8.0])
def test_an_audit_counts_at_one_threshold_that_no_draw_decides(monkeypatch, claimed):
    """The best of many intervals has not the coverage of one."""
    used, count = [], mechanism.counting_bound

    def counting(members, others, threshold, delta, confidence):
        used.append(threshold)
        return count(members, others, threshold, delta, confidence)

    monkeypatch.setattr(mechanism, "counting_bound", counting)
    for scale in (1.0, 1.5):
        mechanism.audit(claimed, 5_000, scale)
    assert len(used) == 2 and used[0] == used[1]
