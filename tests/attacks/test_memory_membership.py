"""Membership: scores against naive twins, shadows, and records that an adapter was trained on."""

import numpy as np
import pytest

from fedpeft.config import build_config
from fedpeft.config.models import DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.errors import AuditError
from fedpeft.training import LocalPlan, per_example_loss, train_local
from fedpeft_attacks.memory.membership_scores import confidence, likelihood_ratio, losses, relative_likelihood
from fedpeft_attacks.memory.shadows import halves, train_shadows
from fedpeft_attacks.memory.statistics import area

TEXT = "the patient asked for a letter to heart team and nurse wrote it down today"
WORDS = TEXT.split()


def examples_of(base, count, seed):
    rng = np.random.default_rng(seed)
    records = [
        Record(" ".join(rng.choice(WORDS, int(rng.integers(4, 9)))), str(rng.choice(["green", "red"])))
        for _ in range(count)
    ]
    return tokenise(records, base.tokenizer, DataConfig(max_length=64, prompt_weight=1.0))


def test_losses_are_those_of_each_record_by_itself(tiny_llama):
    examples = examples_of(tiny_llama, 30, 0)
    alone = [float(per_example_loss(tiny_llama.model, collate([one], 0)).detach()) for one in examples]
    assert losses(tiny_llama.model, examples) == pytest.approx(alone, abs=1e-4)
    assert losses(tiny_llama.model, []).shape == (0,)


def test_losses_of_a_classifier_keep_their_labels(tiny_base):
    base = tiny_base("llama", num_labels=2, task="sequence-classification")
    records = [Record(" ".join(WORDS[: 3 + place]), "ab"[place % 2]) for place in range(5)]
    examples = tokenise(records, base.tokenizer, DataConfig(), "sequence-classification", ["a", "b"])
    alone = [float(per_example_loss(base.model, collate([one], 0)).detach()) for one in examples]
    assert losses(base.model, examples) == pytest.approx(alone, abs=1e-4)


def test_confidence_is_the_logit_of_the_probability():
    loss = np.array([0.1, 2.0])
    p = np.exp(-loss)
    assert confidence(loss) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(confidence(np.zeros(1))).all()


def _simulated(rng, effect, records=400, shadows=8):
    """Confidences of models in which a record's own level hides what training adds."""
    level, inside = rng.normal(0, 3, records), halves(shadows, records, 0)
    member = rng.random(records) < 0.5
    shifts = rng.normal(0, 2, shadows)
    models = level + effect * inside + rng.normal(0, 1, (shadows, records)) + shifts[:, None]
    target = level + effect * member + rng.normal(0, 1, records) - 5
    return target, models, inside, member


def test_the_likelihood_ratio_sees_what_a_plain_loss_does_not():
    target, models, inside, member = _simulated(np.random.default_rng(0), 2.0)
    scores = likelihood_ratio(target, models, inside)
    assert area(scores[member], scores[~member])[0] > 0.85
    assert area(target[member], target[~member])[0] < 0.75


def test_the_relative_likelihood_orders_records_as_rmia_does():
    target, models, _, member = _simulated(np.random.default_rng(0), 2.0)
    scores = relative_likelihood(target, models)
    likely, average = 1 / (1 + np.exp(-target)), (1 / (1 + np.exp(-models))).mean(axis=0)
    ratios = likely / average
    pairs = (ratios[:, None] / ratios[None] >= 1).mean(axis=1)  # of all records, those it is likelier than
    assert np.array_equal(np.argsort(scores), np.argsort(pairs))
    assert area(scores[member], scores[~member])[0] > 0.65
    target, models, _, member = _simulated(np.random.default_rng(1), 0.0)
    scores = relative_likelihood(target, models)
    assert abs(area(scores[member], scores[~member])[0] - 0.5) < 5.3 * 0.029


def test_the_likelihood_ratio_is_at_chance_where_training_leaves_no_trace():
    target, models, inside, member = _simulated(np.random.default_rng(1), 0.0)
    scores = likelihood_ratio(target, models, inside)
    assert abs(area(scores[member], scores[~member])[0] - 0.5) < 5.3 * 0.029


def test_every_record_is_in_half_of_the_shadows():
    inside = halves(8, 100, 3)
    assert (inside.sum(axis=0) == 4).all()
    assert 20 <= inside[0].sum() <= 80
    for wrong in (2, 5):
        with pytest.raises(AuditError, match="even number"):
            halves(wrong, 10, 0)


def test_shadows_are_trained_kept_and_leave_the_adapter_as_it_was(tiny_adapter, tiny_llama, tmp_path):
    federation = {"rounds": 2, "local_steps": 6, "batch_size": 4, "lr": 3e-2}
    config = build_config({"federation": federation, "adapter": {"rank": 4}})
    members, others = examples_of(tiny_llama, 8, 1), examples_of(tiny_llama, 8, 2)
    train_local(tiny_adapter, members, LocalPlan(12, 4, lr=3e-2), np.random.default_rng(0))
    held = tiny_adapter.get()
    shadows = train_shadows(tiny_adapter, config, [*members, *others], 4, tmp_path)
    assert np.array_equal(tiny_adapter.get(), held)
    scores = likelihood_ratio(
        confidence(losses(tiny_adapter.model, [*members, *others])), shadows.confidences, shadows.inside
    )
    assert area(scores[:8], scores[8:])[0] > 0.9
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(str(shadows.confidences[0, 0]), "77.0"))
    assert train_shadows(tiny_adapter, config, [*members, *others], 4, tmp_path).confidences[0, 0] == 77


def test_shadows_of_a_private_run_bear_its_noise(tiny_adapter, tiny_llama):
    privacy = {"unit": "record", "noise_multiplier": 50.0, "public_records": 8, "clip": 0.1}
    federation = {"rounds": 1, "local_steps": 2, "batch_size": 4, "lr": 1e-2, "optimiser": "sgd"}
    shared = {"federation": federation, "adapter": {"rank": 4}}
    records = examples_of(tiny_llama, 8, 1)
    private, again = (
        train_shadows(tiny_adapter, build_config({**shared, "privacy": privacy}), records, 4)
        for _ in range(2)
    )
    plain = train_shadows(tiny_adapter, build_config(shared), records, 4)
    assert np.array_equal(private.confidences, again.confidences)
    assert not np.allclose(private.confidences, plain.confidences)
