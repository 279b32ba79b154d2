"""Each attack works on the undefended update of a trained base and is at chance on random values."""

from dataclasses import replace

import numpy as np
import pytest

from fedpeft.adapters import TokenRows, attach
from fedpeft.config.models import AdapterConfig
from fedpeft.exchange import Layout
from fedpeft_attacks.evidence.undefended_reference import undefended
from fedpeft_attacks.registry import ATTACKS
from fedpeft_attacks.results.token_scores import measure, score
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of, prior_of, vocabulary_of
from fedpeft_attacks.views import Guess, NotApplicable, NotCovered, View

pytestmark = pytest.mark.portable

VOCABULARY = 1024

UNIFORM = np.full(VOCABULARY, 1 / VOCABULARY)
TOKEN_ATTACKS = [name for name, attack in ATTACKS.items() if attack.needs == {"token inputs"}]


@pytest.fixture
def reference(trained_base):
    return undefended(trained_base, rank=8, prior=UNIFORM)


def _recall(reference, attack, rows):
    truth = {token for row in rows for token in row} - {1, 2}
    guess = ATTACKS[attack](reference.view(rows, truth))
    assert isinstance(guess, Guess)
    return score(guess, truth, UNIFORM, {0, 1, 2})


@pytest.mark.parametrize("attack", TOKEN_ATTACKS)
def test_reads_a_single_record_of_the_undefended_reference(reference, sentences, attack):
    counts = [_recall(reference, attack, sentences(1, seed)).all for seed in range(3)]
    assert measure(counts).value >= 0.9


def test_sparse_recovery_reads_far_beyond_the_rank(reference, sentences):
    rows = sentences(3, 7)
    found = _recall(reference, "sparse-recovery", rows)
    assert found.all.tokens > 3 * 8  # more tokens than rows of the joint A
    assert found.all.hits / found.all.tokens >= 0.85
    assert found.claimed_hits / found.claimed >= 0.85
    assert _recall(reference, "span", rows).all.hits < found.all.hits


@pytest.mark.parametrize("attack", TOKEN_ATTACKS)
def test_is_at_chance_on_random_values(reference, sentences, attack):
    rows = sentences(3, 0)
    real = {token for row in rows for token in row} - {1, 2}
    view, uniform, spoken = reference.view(rows, real), [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        guess = ATTACKS[attack](replace(view, values=rng.normal(size=view.layout.size).astype(np.float32)))
        drawn = set(rng.choice(np.arange(3, VOCABULARY), len(real), replace=False).tolist())
        uniform.append(score(guess, drawn, UNIFORM, {0, 1, 2}).all)
        spoken.append(score(guess, real, UNIFORM, {0, 1, 2}).all)
    figure = measure(uniform)
    assert figure.interval[0] <= figure.baselines.chance <= figure.interval[1]
    # the frequent tokens lie apart from the rest, so that even a fit of noise prefers them a little
    assert measure(spoken).value <= figure.baselines.chance + 0.1


@pytest.mark.parametrize("attack", TOKEN_ATTACKS)
@pytest.mark.parametrize(
    "adapter",
    [
        {"aggregation": "frozen_a", "rank": 4},
        {"method": "miss", "rank": 4},
        {"aggregation": "stack", "rank": 4},
    ],
)
def test_formats_that_send_only_b_are_read_through_the_known_projection(trained_base, attack, adapter):
    attached = attach(trained_base, AdapterConfig(skip_layers=(), **adapter), seed=0, node="bank")
    known = knowledge_of(attached, UNIFORM, ("bank", 1), 0.01)
    assert len(known.readers) == 3
    assert known.readers <= set(known.projections)
    token = np.zeros((1, VOCABULARY))
    token[0, 17] = 1.0
    tensors = {
        name: np.zeros(shape, np.float32)
        for name, shape in zip(attached.layout.names, attached.layout.shapes, strict=True)
    }
    for module in known.readers:
        atom = (token @ known.inputs @ known.projections[module].T).astype(np.float32)
        name = f"{module}.lora_B.weight"
        tensors[name] = np.outer(np.linspace(-1, 1, tensors[name].shape[0]), atom).astype(np.float32)
    view = View("update", "insider", "test", attached.layout, attached.layout.flatten(tensors), known, 1)
    guess = ATTACKS[attack](view)
    assert isinstance(guess, Guess)
    assert guess.ranking[0] == 17


@pytest.mark.parametrize("attack", TOKEN_ATTACKS)
def test_what_cannot_be_read_is_not_applicable(trained_base, attack):
    attached = attach(trained_base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    answer = ATTACKS[attack](_update_of(attached))
    assert type(answer) is NotApplicable and "the first layer is zero" in answer.reason


def _update_of(attached):
    known = knowledge_of(attached, UNIFORM, ("", 1), 0.01)
    return View("update", "insider", "test", attached.layout, attached.get(), known, 5)


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_a_method_that_declares_no_token_rows_is_not_covered(trained_base, attack):
    """Never not applicable: that would say that there is nothing to read."""
    attached = attach(trained_base, AdapterConfig(skip_layers=(), method="ia3"), seed=0)
    view = replace(_update_of(attached), records=1)
    for one in (view, replace(view, knowledge=replace(view.knowledge, readers=frozenset()))):
        answer = ATTACKS[attack](one)
        assert isinstance(answer, NotCovered) and "declares no token_rows" in answer.reason


@pytest.mark.parametrize("attack", TOKEN_ATTACKS)
def test_tokens_are_read_whatever_a_method_calls_its_tensors(trained_base, attack):
    """What is read follows from the declaration, not from names that happen to be LoRA's."""
    attached = attach(trained_base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    known = knowledge_of(attached, UNIFORM, ("", 1), 0.01)
    atom = known.inputs[17]
    module = min(known.readers)
    layout = Layout((f"{module}.down.weight",), ((3, len(atom)),))
    values = np.outer([1.0, -2.0, 0.5], atom).astype(np.float32).ravel()
    rows = TokenRows(inputs="down", projected="up", projection="down")
    view = View("update", "insider", "test", layout, values, replace(known, rows=rows), 1)
    assert ATTACKS[attack](view).ranking[0] == 17


@pytest.mark.parametrize(
    ("architecture", "is_readable"), [("llama", True), ("gemma", True), ("phi", True), ("gpt2", False)]
)
def test_the_first_layer_is_found_by_asking_the_model(tiny_base, architecture, is_readable):
    base = tiny_base(architecture)
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    known = knowledge_of(attached, UNIFORM, ("", 1), 0.01)
    assert (known.approximation is None) == is_readable
    assert known.inputs.shape == (vocabulary_of(base), 32)
    assert all(".0." in name for name in known.readers)
    if not is_readable:
        assert "positions" in known.approximation


def test_a_skipped_layer_is_replaced_by_the_next_with_approximate_atoms(trained_base, sentences):
    reference = undefended(trained_base, 8, UNIFORM, skip_layers=(0,))
    assert all(".1." in name for name in reference.knowledge.readers)
    assert "layer 0 carries no adapter" in reference.knowledge.approximation
    counts = [_recall(reference, "sparse-recovery", sentences(1, seed)).all for seed in range(12)]
    figure = measure(counts)
    assert figure.interval[0] > figure.baselines.chance


def test_the_prior_is_what_the_base_writes(trained_base, sentences):
    prior = prior_of(trained_base)
    assert prior.sum() == pytest.approx(1.0)
    common = {token for token in np.argsort(-prior)[:100].tolist()}
    said = [token for row in sentences(200, 1) for token in row]
    assert sum(token in common for token in said) / len(said) > 0.5
    assert np.array_equal(prior, prior_of(trained_base))
