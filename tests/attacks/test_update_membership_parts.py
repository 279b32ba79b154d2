"""Parts of the attack on membership against naive twins: gradients, alignment, ProjRes, statistics."""

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach, detach
from fedpeft.config.models import AdapterConfig, DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.training import per_example_loss
from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.taps import GRADIENT
from fedpeft_attacks.memory.statistics import area
from fedpeft_attacks.update_membership.alignment import COMMON, Alignment, Preconditioner
from fedpeft_attacks.update_membership.claimed_bound import allowed_area, allowed_share
from fedpeft_attacks.update_membership.contrasts import Contrast, chance_of, linked, pooled
from fedpeft_attacks.update_membership.residuals import ENERGY, Residuals
from fedpeft_attacks.update_membership.round_scores import (
    ALIGNMENT,
    COSINE,
    PROJRES,
    Observation,
    gradient_of,
    score_round,
)

pytestmark = pytest.mark.portable

PEFT = "base_model.model."
"""In front of the names of modules once peft has wrapped a base."""


def unit(values):
    return values / np.linalg.norm(values)


@pytest.fixture
def adapted(trained_base):
    """A function from adapter settings to an adapter with warm values."""

    def make(**settings):
        attached = attach(
            trained_base, AdapterConfig(**{"rank": 8, "skip_layers": [], **settings}), 0, "bank"
        )
        noise = np.random.default_rng(0).normal(scale=0.05, size=attached.layout.size)
        attached.load(attached.get() + noise.astype(np.float32))
        return attached

    yield make
    detach()


@pytest.fixture
def examples(trained_base, sentences):
    """A function from a number and a seed to examples of the base's language."""

    def make(count, seed):
        rows = [[f"w{token}" for token in row[1:-1] if token > 2] for row in sentences(count, seed)]
        records = [Record(" ".join(row[:9]), " " + " ".join(row[9:])) for row in rows]
        return tokenise(records, trained_base.tokenizer, DataConfig(max_length=64, prompt_weight=0.2))

    return make


def test_the_gradient_is_that_of_the_mean_loss_as_it_is_trained(adapted, examples):
    attached, batch = adapted(), examples(3, 1)
    with steady(attached.model):
        whole = gradient_of(attached, batch)
        alone = np.mean([gradient_of(attached, [one]) for one in batch], axis=0)
    loss = per_example_loss(attached.model, collate(batch, attached.base.pad_id)).mean()
    loss.backward()
    naive = {name: tensor.grad for name, tensor in attached.parameters.items()}
    assert whole == pytest.approx(attached.layout.flatten(naive), abs=1e-5)
    assert whole == pytest.approx(alone, abs=1e-5)
    attached.model.zero_grad()


def naive_alignment(gradients, observed, record, of_gradients):
    """The score written out: divide, project out the mean, then the leading singular vectors of the rest."""
    scale = np.sqrt((gradients**2).mean(axis=0)) + 1e-9
    mean = unit((gradients / scale).mean(axis=0))
    outside = np.eye(len(mean)) - np.outer(mean, mean)
    rows = np.array([unit(outside @ (row / scale)) for row in gradients])
    leading = np.linalg.svd(rows)[2][: min(COMMON, len(rows) // 2)]
    outside -= leading.T @ leading
    return unit(outside @ (record / scale)) @ unit(outside @ (observed / (scale if of_gradients else 1)))


@pytest.mark.parametrize("count", [16, 80])
def test_alignment_equals_its_naive_twin(count):
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(3, 200))
    gradients = rng.normal(size=(count, 3)) @ shared + rng.normal(size=(count, 200)) * rng.uniform(
        0.1, 3, 200
    )
    observed, record = rng.normal(size=(2, 200)), rng.normal(size=200)
    preconditioner = Preconditioner.of(gradients.astype(np.float32))
    raw = [False, True]
    alignment = Alignment.of(observed.astype(np.float32), preconditioner, raw)
    naive = [naive_alignment(gradients, *pair) for pair in zip(observed, [record] * 2, raw, strict=True)]
    assert alignment(record.astype(np.float32)) == pytest.approx(naive, abs=1e-4)
    basis = preconditioner.basis
    assert basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-4)
    plain = [unit(record) @ unit(values) for values in observed]
    assert alignment.cosine(record.astype(np.float32)) == pytest.approx(plain, abs=1e-5)
    assert Alignment.of(observed, None, raw)(record) == pytest.approx(plain, abs=1e-9)


def test_zeros_and_copies_are_no_error():
    same = np.ones((16, 50), np.float32)
    preconditioner = Preconditioner.of(same.copy())
    assert np.isfinite(preconditioner.unshared(np.ones(50, np.float32))).all()
    zeros = Alignment.of(np.zeros((1, 50), np.float32), preconditioner, [True])
    assert zeros(np.ones(50, np.float32)) == pytest.approx([0.0])


@pytest.mark.parametrize("settings", [{}, {"aggregation": "naive"}])
def test_projres_equals_its_naive_twin(adapted, examples, settings):
    """The share of what is read that lies in the leading rows, mean over tokens and modules."""
    attached, (batch, record) = adapted(**settings), (examples(1, 3), examples(1, 4))
    with steady(attached.model):
        observed = gradient_of(attached, batch)
        frozen = {
            name.removeprefix(PEFT).removesuffix(".lora_A.default"): module.weight.detach().numpy()
            for name, module in attached.model.named_modules()
            if name.endswith(".lora_A.default") and not settings
        }
        residuals = Residuals.of([observed, -2 * observed], attached, frozen)
        with residuals.reading(attached.model):
            gradient_of(attached, record)
            scores = residuals()
    naive = _naive_projres(attached, observed, frozen, record)
    assert len(residuals.parts) == len(naive)
    assert scores == pytest.approx([np.mean(naive)] * 2, abs=1e-4)
    with steady(attached.model), residuals.reading(attached.model):
        gradient_of(attached, batch)
        assert residuals()[0] > scores[0]  # what is behind an update lies in it


def _naive_projres(attached, observed, frozen, record):
    read, shares = {}, []
    modules = dict(attached.model.named_modules())
    kind = ".lora_B" if frozen else ".lora_A"
    tensors = {name: values for name, values in attached.layout.split(observed).items() if kind in name}
    for name in tensors:
        module = name.split(kind)[0]
        modules[PEFT + module].register_forward_hook(
            lambda _, inputs, __, module=module: read.__setitem__(module, inputs[0].detach())
        )
    with torch.no_grad():
        per_example_loss(attached.model, collate(record, attached.base.pad_id))
    for name, values in tensors.items():
        module = name.split(kind)[0]
        _, sizes, rows = np.linalg.svd(values)
        count = next(
            k for k in range(1, len(sizes) + 1) if (sizes[:k] ** 2).sum() >= ENERGY * (sizes**2).sum()
        )
        if count == rows.shape[1]:
            continue
        inputs = read[module][0].numpy()
        inputs = inputs @ frozen[module].T if frozen else inputs
        shares.append(np.mean([np.linalg.norm(rows[:count] @ unit(row)) ** 2 for row in inputs]))
    return shares


def test_a_round_is_scored_and_the_adapter_left_as_it_was(adapted, examples):
    attached, batch, others = adapted(), examples(3, 5), examples(40, 6)
    start = attached.get()
    with steady(attached.model):
        gradient = gradient_of(attached, batch)
    update = -0.5 * gradient
    columns = {(GRADIENT, "bank"): gradient, ("envelope", "bank"): update}
    seen = Observation(attached, start, columns, {}, True, examples(16, 7))
    scores = score_round(seen, {"bank": [*batch, *others]})
    assert np.array_equal(attached.get(), start)
    assert scores.gradients == 3 + 40 + 16
    assert {name for name, _, _ in scores.table} >= {ALIGNMENT, COSINE}
    for score in (ALIGNMENT, COSINE):
        values = scores.table[score, "bank", ("envelope", "bank")]
        assert values.shape == (43,) and area(values[:3], values[3:])[0] > 0.8
    # a gradient and the update against it say the same
    first = scores.table[ALIGNMENT, "bank", (GRADIENT, "bank")]
    assert first == pytest.approx(scores.table[ALIGNMENT, "bank", ("envelope", "bank")], abs=1e-4)
    few = score_round(Observation(attached, start, columns, {}, True, examples(3, 7)), {"bank": batch})
    assert few.gradients == 3 and (PROJRES, "bank", (GRADIENT, "bank")) not in few.table
    assert few.table[ALIGNMENT, "bank", (GRADIENT, "bank")] == pytest.approx(
        few.table[COSINE, "bank", (GRADIENT, "bank")]
    )


def test_views_are_pooled_on_a_scale_that_needs_no_truth():
    rng = np.random.default_rng(0)
    pairs = [
        (rng.normal(1, 1, 30) * size + shift, rng.normal(0, 1, 90) * size + shift)
        for size, shift in ((1, 0), (1000, 5000))
    ]
    views = [Contrast(pair, (pair[1][:30], pair[1])) for pair in pairs]
    whole = pooled(views)
    everything = np.concatenate(pairs[1])
    assert whole.scores[0][30:] == pytest.approx((pairs[1][0] - everything.mean()) / everything.std())
    measure = whole.area("members")
    assert measure.value == pytest.approx(np.mean([m > o for m in whole.scores[0] for o in whole.scores[1]]))
    assert 0.7 < measure.value < 0.85 and measure.count == 60
    assert measure.baselines.control == pytest.approx(0.5, abs=0.1)
    found = whole.detected(0.01)
    threshold = np.sort(whole.scores[1])[-1]  # 181 records: one false alarm would be more than 1 %
    assert found.value == np.mean(whole.scores[0] > threshold)
    assert whole.detected(0.001) is None
    assert len(pooled([views[0], Contrast(pairs[1])]).control[0]) == 30
    assert pooled([Contrast(pairs[1])]).control is None
    assert pooled([]) is None and pooled([Contrast((np.zeros(1), np.zeros(1)))]) is None


def test_rounds_are_linked_record_by_record():
    rng = np.random.default_rng(1)
    level = rng.normal(0.4, 1, 40)
    views = [Contrast((level + rng.normal(0, 3, 40), rng.normal(0, 3, 200))) for _ in range(30)]
    single, whole = pooled(views), pooled([linked(views)])
    assert whole.area("linked").value > single.area("single").value
    assert whole.control is None and len(whole.scores[0]) == 40
    assert linked([]) is None


def test_the_chance_of_so_many_members_is_that_of_shuffled_records():
    rng = np.random.default_rng(3)
    members, others, draws = 12, 210, 20_000
    hits = []
    for _ in range(draws):
        order = rng.permutation(members + others)
        scores = order[:members], np.sort(order[members:])
        hits.append((scores[0] > scores[1][-2]).sum())  # 211 others allow one false alarm at 1 %
    for count in (1, 2, 3):
        share = np.mean(np.array(hits) >= count)
        assert chance_of(count, members, others) == pytest.approx(share, abs=4 * np.sqrt(share / draws))


def test_members_that_stand_out_by_luck_do_not_count():
    rng = np.random.default_rng(4)
    quiet = [pooled([Contrast((rng.normal(size=100), rng.normal(size=120)))]) for _ in range(200)]
    assert np.mean([one.finds_members() for one in quiet]) <= 0.03
    members = np.concatenate([rng.normal(size=90), np.full(10, 9.0)])
    assert pooled([Contrast((members, rng.normal(size=120)))]).finds_members()
    assert not pooled([Contrast((members, rng.normal(size=50)))]).finds_members()  # too few others
    control = (members, rng.normal(size=120))
    assert not pooled([Contrast((members, rng.normal(size=120)), control)]).finds_members()


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (2.0, 1e-5), (1.0, 0.05)])
def test_what_a_claim_allows_is_the_area_under_its_trade_off(epsilon, delta):
    alarms = np.linspace(0, 1, 200_001)
    curve = [allowed_share(epsilon, delta, alarm) for alarm in alarms[::20]]
    assert np.trapezoid(curve, alarms[::20]) == pytest.approx(allowed_area(epsilon, delta), abs=1e-3)
    naive = min(np.exp(epsilon) * 0.01 + delta, 1 - np.exp(-epsilon) * (1 - delta - 0.01))
    assert allowed_share(epsilon, delta, 0.01) == pytest.approx(naive)
