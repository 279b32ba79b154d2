"""Token attacks on bases with absolute positions, beside a naive twin and with controls."""

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach, detach
from fedpeft.config.models import AdapterConfig, DataConfig
from fedpeft.errors import ConfigError
from fedpeft_attacks.evidence.attack_power import Trials, power_of
from fedpeft_attacks.evidence.collect_views import Observed
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.registry import attack_named
from fedpeft_attacks.results.evaluate_attack import Trial, find
from fedpeft_attacks.results.measures import SEQUENCES
from fedpeft_attacks.tokens.placed_inputs import PlacedInputs, placed_inputs

from . import encoders

LEAKY = AdapterConfig(aggregation="naive", rank=8, skip_layers=())
READERS = ("query", "key", "value", "q_lin", "k_lin", "v_lin", "c_attn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function from a kind of classifier to its folder."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = encoders.save(kind, tmp_path_factory.mktemp("encoders") / kind)
        return made[kind]

    return make


@pytest.fixture
def bert(folder):
    yield encoders.load(folder("bert"))
    detach()


def _reader(model):
    """The first adapted module of layer 0."""
    return next(
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in READERS and hasattr(module, "base_layer")
    )


@pytest.mark.parametrize("kind", encoders.MAKERS)
def test_what_is_known_of_a_base_is_what_it_reads(folder, kind):
    base = encoders.load(folder(kind))
    attached = attach(
        base, AdapterConfig(rank=2, skip_layers=(), target_modules=_targets(base.model)), seed=0
    )
    reader, read = _reader(attached.model), []
    known = placed_inputs(attached.model, reader, encoders.VOCABULARY)
    ids = torch.randint(encoders.FIRST, encoders.VOCABULARY, (1, 20), generator=torch.manual_seed(1))
    handle = reader.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))
    with torch.no_grad():
        attached.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    handle.remove()
    assert known is not None
    twin = known.rows(ids[0].numpy(), np.arange(20))
    np.testing.assert_allclose(twin, read[0].numpy(), atol=1e-4)
    detach()


def _targets(model):
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return tuple(sorted(names & set(READERS)))


def test_deeper_layers_and_other_embeddings_have_no_factors(bert):
    attached = attach(bert, AdapterConfig(rank=2), seed=0)
    assert placed_inputs(attached.model, _reader(attached.model), encoders.VOCABULARY) is None
    attached = attach(bert, LEAKY, seed=0)
    embeddings = attached.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda *call: 3 * call[2])  # as bases that scale theirs
    assert placed_inputs(attached.model, _reader(attached.model), encoders.VOCABULARY) is None
    handle.remove()


def test_squared_cosines_and_projections_equal_those_of_all_rows_written_out():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=shape).astype(np.float32) for shape in ((30, 12), (7, 12), (12,))]
    known = PlacedInputs(*parts, rng.uniform(0.5, 2, (30, 7)).astype(np.float32))
    basis = np.linalg.qr(rng.normal(size=(12, 4)))[0].T
    tokens, places = (part.ravel() for part in np.mgrid[:30, :7])
    rows = known.rows(tokens, places)
    shares = ((rows @ basis.T) ** 2).sum(1) / (rows**2).sum(1)
    np.testing.assert_allclose(known.insides(basis), shares.reshape(30, 7), atol=1e-5)
    projected = known.projected(basis).rows(tokens, places)
    np.testing.assert_allclose(projected, rows @ basis.T, atol=1e-5)
    assert known.up_to(3).scales.shape == (30, 3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2"])
@pytest.mark.parametrize("length", [9, 30])
def test_a_record_is_read_in_order_beyond_the_rank(folder, kind, length):
    base = encoders.load(folder(kind))
    (example,) = encoders.draw([length], seed=length)
    rank = 24 if kind == "gpt2" else 8  # which has one module where the others have three
    view, truth = encoders.view_of(base, LEAKY.model_copy(update={"rank": rank}), [example])
    guess = attack_named("sparse-recovery")(view)
    assert guess.sequences == (tuple(example.ids.tolist()),) and guess.certain == (True,)
    assert guess.claimed == len(truth) and set(guess.ranking[: len(truth)]) == truth
    assert guess.note == "" and sorted(guess.ranking) == sorted(
        set(range(encoders.VOCABULARY)) - view.knowledge.special
    )
    detach()


@pytest.mark.parametrize("kind", ["albert", "electra"])
def test_narrow_embeddings_are_read_through_their_projection(folder, kind):
    base = encoders.load(folder(kind))
    (example,) = encoders.draw([12], seed=1)
    view, truth = encoders.view_of(
        base, AdapterConfig(aggregation="naive", rank=16, skip_layers=()), [example]
    )
    assert any("embedding" in reader for reader in view.knowledge.readers)
    assert set(attack_named("sparse-recovery")(view).ranking[: len(truth)]) == truth
    detach()


def test_with_layer_0_goes_what_projects_the_embeddings(folder):
    """ALBERT has one layer for all depths: nothing of it can carry an adapter without layer 0."""
    spec = attach(encoders.load(folder("electra")), AdapterConfig(rank=16), 0).spec
    assert spec.targets and all(".layer.1." in target for target in spec.targets)
    with pytest.raises(ConfigError, match="leave out fewer layers"):
        attach(encoders.load(folder("albert")), AdapterConfig(rank=16), 0)
    detach()


def test_the_span_check_reads_a_record_where_the_rank_reaches(bert):
    (example,) = encoders.draw([20], seed=5)
    whole, truth = encoders.view_of(bert, LEAKY.model_copy(update={"rank": 16}), [example])
    assert attack_named("span")(whole).sequences == (tuple(example.ids.tolist()),)
    short, _ = encoders.view_of(bert, LEAKY.model_copy(update={"rank": 2}), [example])
    guess = attack_named("span")(short)
    assert guess.claimed < len(truth) and guess.sequences == ()


def test_a_batch_gives_its_tokens_and_no_made_up_record_whatever_the_padding(bert):
    examples = encoders.draw([8, 14, 5], seed=9)
    view, truth = encoders.view_of(bert, LEAKY, examples)
    guess = attack_named("sparse-recovery")(view)
    assert set(guess.ranking[: len(truth)]) == truth and guess.claimed == len(truth)
    assert guess.sequences == ()
    other, _ = encoders.view_of(bert, LEAKY, encoders.draw([8, 14, 5], seed=10))
    control = set(attack_named("sparse-recovery")(other).ranking[: len(truth)])
    assert len(truth & control) < 0.6 * len(truth)


def test_places_beyond_the_longest_record_of_the_run_are_not_looked_at(bert):
    (example,) = encoders.draw([24], seed=2)
    view, _ = encoders.view_of(bert, LEAKY, [example])
    for longest, is_read in ((24, True), (12, False)):
        frame = RecordFrame.of(bert.tokenizer, DataConfig(max_length=longest))
        known = encoders.replace(view.knowledge, frame=frame)
        guess = attack_named("sparse-recovery")(encoders.replace(view, knowledge=known))
        assert (guess.sequences == (tuple(example.ids.tolist()),)) == is_read


@pytest.mark.parametrize("attack", ["span", "sparse-recovery"])
def test_noise_and_frozen_factors_give_a_ranking_and_claim_no_record(bert, attack):
    examples = encoders.draw([16], seed=3)
    noise = np.random.default_rng(0)
    noisy, _ = encoders.view_of(
        bert, LEAKY, examples, lambda g: (g + noise.normal(size=g.shape) * np.abs(g).max()).astype(np.float32)
    )
    frozen, _ = encoders.view_of(bert, AdapterConfig(rank=4, skip_layers=()), examples)
    for view in (noisy, frozen):
        guess = attack_named(attack)(view)
        assert guess.sequences == () and len(guess.ranking) == encoders.VOCABULARY - len(
            view.knowledge.special
        )


def test_frozen_factors_of_a_rank_beyond_the_tokens_give_the_record_away(bert):
    (example,) = encoders.draw([10], seed=4)
    view, truth = encoders.view_of(bert, AdapterConfig(rank=48, skip_layers=()), [example])
    guess = attack_named("sparse-recovery")(view)
    assert set(guess.ranking[: len(truth)]) == truth


def _observed(base, adapter):
    """One record of each of two nodes."""
    parts = {node: encoders.draw([14 + seed], seed) for seed, node in enumerate(("bank", "hospital"))}
    views = {node: encoders.view_of(base, adapter, examples) for node, examples in parts.items()}
    return tuple(
        Observed(node, 1, *views[node], [example.ids.tolist() for example in examples])
        for node, examples in parts.items()
    )


def test_the_audit_calls_a_read_record_a_leak_and_states_its_power(bert):
    seen = _observed(bert, LEAKY)
    attack = attack_named("sparse-recovery")
    power = power_of(attack, Trials(seen, seen, seen))
    assert power is not None and power.shares["one record alone, word for word"] == 1.0
    assert power.shares["the tokens of a batch"] == 1.0
    finding = find(Trial("sparse-recovery", attack, power, 0.1, bert.tokenizer), seen)
    records = finding.measure(SEQUENCES)
    assert finding.verdict == "leaks" and records is not None and finding.note is None
    assert (records.value, records.baselines.control) == (1.0, 0.0)


def test_a_run_that_leaves_layer_0_out_has_a_figure_and_says_that_its_atoms_are_near(bert):
    seen = _observed(bert, AdapterConfig())
    finding = find(Trial("span", attack_named("span"), None, 0.1, bert.tokenizer), seen)
    assert finding.value is not None and finding.verdict != "leaks"
    assert "layer 0 carries no adapter" in (finding.note or "")
