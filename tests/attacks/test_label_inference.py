"""Labels from updates: runs that leak, runs at chance, records without labels, parts against twins."""

import numpy as np
import pytest
from scipy.optimize import nnls

from fedpeft.adapters import attach, detach
from fedpeft.config.models import AdapterConfig, DataConfig
from fedpeft.data import Record, tokenise
from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.label_inference.classes import Classes
from fedpeft_attacks.label_inference.findings import NAME, SHARES
from fedpeft_attacks.label_inference.label_scores import GUESSES
from fedpeft_attacks.label_inference.shares import ClassGradients, overlap
from fedpeft_attacks.views import NotApplicable, NotCovered

pytestmark = pytest.mark.portable

KNOWN_TEXT = next(iter(GUESSES))


def noise(values, rng):
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in values.items()}


def swapped(values, rng):
    """Each node's update is the other one's."""
    return dict(zip(values, reversed(values.values()), strict=True))


def attacked(run):
    report = audit(run, [NAME])
    return report, {finding.stage: finding for finding in report.findings}


def test_a_batchs_gradient_shows_its_class_shares(make_labelled):
    make_labelled.batch = 24
    report, findings = attacked(make_labelled())
    assert list(findings) == ["gradient", "envelope", "aggregate"]
    envelope = findings["envelope"]
    assert envelope.verdict == report.verdict == "leaks"
    shares = envelope.measure(SHARES)
    assert shares.value >= 0.65 and shares.interval[0] > shares.baselines.best
    assert shares.baselines.control < 0.5 and shares.count == 2 * 2 * make_labelled.batch
    assert findings["aggregate"].measure(SHARES) is None and "not judged" in findings["aggregate"].note
    assert envelope.power.shares["the class shares of a batch"] >= 0.6
    words = [record.completion for record in make_labelled.records("bank")]
    stored = (make_labelled.path / "audit" / "report.json").read_text()
    assert words and not any(f'"{word.strip()}"' in stored for word in words)


def test_a_batchs_gradient_shows_labels_that_no_text_tells(make_labelled):
    make_labelled.batch, make_labelled.rounds = 4, (1, 2, 3, 4)
    _, findings = attacked(make_labelled())
    for stage in ("gradient", "envelope"):
        texts = findings[stage].measure(KNOWN_TEXT)
        assert findings[stage].verdict == "leaks"
        assert texts.interval[0] > texts.baselines.best and texts.baselines.best < 0.5
    assert findings["aggregate"].measure(KNOWN_TEXT).count == 2 * 4 * make_labelled.batch


@pytest.mark.parametrize("replaced", [noise, swapped])
def test_an_update_of_other_data_shows_none(make_labelled, replaced):
    _, findings = attacked(make_labelled(replaced))
    for stage in ("gradient", "envelope"):
        assert findings[stage].verdict == "not detected"
        assert findings[stage].measure(SHARES).value <= 0.7


def test_a_run_without_its_starts_is_not_covered(make_labelled):
    run = make_labelled()
    for file in run.glob("nodes/*/taps/r*/start.npz"):
        file.unlink()
    report, findings = attacked(run)
    assert findings["envelope"].verdict == report.verdict == "not covered"
    assert "the adapter before each round" in findings["envelope"].reason


def test_free_text_has_no_labels(make_members):
    _, findings = attacked(make_members())
    assert {stage: finding.verdict for stage, finding in findings.items()} == {"envelope": "not applicable"}
    assert "different answers" in findings["envelope"].reason


def test_shares_are_those_of_non_negative_least_squares_over_all_values():
    rng = np.random.default_rng(0)
    gradients, indices = rng.normal(size=(30, 200)).astype(np.float32), np.arange(30) % 3
    known = ClassGradients.of(gradients.copy(), indices)
    means = np.stack([gradients[indices == place].mean(axis=0) for place in range(3)], axis=1)
    scale = np.sqrt((gradients**2).mean(axis=0))
    observed = (means @ [0.6, 0.0, 0.4] + 0.01 * rng.normal(size=200)).astype(np.float32)
    weights, _ = nnls((means / scale[:, None]).astype(float), (observed / scale).astype(float))
    estimate = known.shares(observed, of_gradients=True)
    np.testing.assert_allclose(estimate, weights / weights.sum(), atol=1e-4)
    assert overlap(estimate, np.array([0.6, 0.0, 0.4])) >= 0.97
    np.testing.assert_allclose(known.shares(observed / known.scale, of_gradients=False), estimate, atol=1e-5)
    np.testing.assert_allclose(known.shares(-means.sum(axis=1), of_gradients=True), 1 / 3)


@pytest.fixture
def labelled(trained_base):
    """A function from answers to examples with these, and the same texts."""

    def make(answers):
        records = [Record("w5 w9 w4 w8", answer) for answer in answers]
        return tokenise(records, trained_base.tokenizer, DataConfig(max_length=64))

    return make


def test_a_guess_does_not_see_the_answer(trained_base, labelled):
    attached = attach(trained_base, AdapterConfig(rank=4, skip_layers=[]), 0, "bank")
    classes = Classes.of(labelled([" w3", " w4"] * 6), trained_base.task)
    assert isinstance(classes, Classes) and len(classes.names) == 2
    first, second = classes.logits(attached, labelled([" w3", " w4"]))
    for record, other in zip(classes.answered(labelled([" w7"])[0]), labelled([" w3", " w4"]), strict=True):
        np.testing.assert_array_equal(record.ids, other.ids)
        np.testing.assert_array_equal(record.weights, other.weights)
    np.testing.assert_array_equal(first, second)
    assert list(classes.indices(labelled([" w4", " w3", " w7"]))) == [1, 0, -1]
    np.testing.assert_allclose(classes.shares(labelled([" w4", " w4", " w3", " w7"])), [1 / 3, 2 / 3])
    detach()


def test_what_has_no_classes_says_why(trained_base, labelled):
    assert isinstance(Classes.of([], trained_base.task), NotCovered)
    free = Classes.of(labelled([f" w{word}" for word in range(3, 15)]), trained_base.task)
    assert isinstance(free, NotApplicable) and "12 different answers" in free.reason
    same = Classes.of(labelled([" w3"] * 12), trained_base.task)
    assert isinstance(same, NotApplicable) and "1 different" in same.reason
