"""Per-example gradients, clipping and the noisy step against naive twins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.data import collate
from fedpeft.errors import PrivacyError
from fedpeft.privacy import noise
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training.dp import dpsgd, per_example
from fedpeft.training.dp.backward_passes import batched_rows, bounds_of, unit_row
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady

PLAN = PrivacyPlan(
    sampling_probability=0.5,
    noise_multiplier=1.0,
    clip=1.0,
    expected_batch_size=4,
    steps_per_round=5,
    rounds=2,
    delta=1e-5,
)


LOOP, BATCHED = per_example.Engine("loop", ""), per_example.Engine("batched", "")


def rows_of(attached, batch, engine=None):
    """The gradient of each example, shape (B, layout.size), by an engine."""
    chosen = engine or per_example.engine_of(attached)
    with steady(attached.model):
        if chosen.name == "batched":
            blocks = [batched_rows(attached, batch, bounds_of(None, len(batch)))]
        else:
            blocks = [unit_row(attached, batch.part(i, i + 1)) for i in range(len(batch))]
    sizes = attached.layout.sizes.tolist()
    filled = [
        [torch.zeros(len(batch) // len(blocks), n) if r is None else r for r, n in zip(b, sizes, strict=True)]
        for b in blocks
    ]
    return torch.cat([torch.cat(parts, dim=1) for parts in filled])


def naive(attached, examples):
    """One example at a time, unpadded, full logits, log-softmax written out."""
    rows = []
    for example in examples:
        for parameter in attached.parameters.values():
            parameter.grad = None
        ids = torch.from_numpy(example.ids)[None]
        logits = attached.model(input_ids=ids).logits[0].float()
        scores = torch.log_softmax(logits, dim=-1)
        weights = torch.from_numpy(example.weights)
        terms = [-weights[t] * scores[t - 1, ids[0, t]] for t in range(1, ids.shape[1])]
        (sum(terms) / weights[1:].sum()).backward()
        grads = [attached.parameters[name].grad.reshape(-1) for name in attached.layout.names]
        rows.append(torch.cat(grads).clone())
        for parameter in attached.parameters.values():
            parameter.grad = None
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("arch", "method", "nf4", "engine"),
    [
        ("llama", "lora-b", False, "batched"),
        ("llama", "lora", False, "batched"),
        ("llama", "lora-b", True, "batched"),
        ("llama", "lora", True, "batched"),
        ("gpt2", "lora", False, "batched"),
        ("gemma2", "lora-b", False, "batched"),
        ("llama", "ia3", False, "loop"),
        ("gpt2", "ia3", False, "loop"),
    ],
)
def test_equal_the_naive_loop(toy, toy_examples, arch, method, nf4, engine):
    attached, examples = toy(arch, method, nf4), toy_examples(5)
    with steady(attached.model):
        expected = naive(attached, examples)
    batch = collate(examples, 0)
    assert per_example.engine_of(attached).name == engine
    for name in {engine, "loop"}:
        found = rows_of(attached, batch, per_example.Engine(name, ""))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_sequence_classification_equals_the_loop(toy, toy_examples):
    attached = toy("llama-classifier", "lora")
    batch = collate(toy_examples(5, classes=3), 0)
    assert per_example.engine_of(attached).name == "batched"
    fast = rows_of(attached, batch)
    slow = rows_of(attached, batch, LOOP)
    assert fast.abs().max() > 0
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(toy, toy_examples):
    attached, batch = toy("llama", "lora"), collate(toy_examples(4), 0)
    plain = rows_of(attached, batch)
    attached.model.base_model.model.model.gradient_checkpointing = True
    for layer in attached.model.base_model.model.model.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
            f, *a, use_reentrant=False
        )
    torch.testing.assert_close(rows_of(attached, batch), plain)


def test_a_neighbour_cannot_change_a_gradient(toy, toy_examples):
    attached, examples, others = toy(), toy_examples(4), toy_examples(4, seed=9)
    mine = rows_of(attached, collate(examples, 0))[0]
    theirs = rows_of(attached, collate([examples[0], *others], 0))[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_the_probe_leaves_the_adapter_as_it_was(toy):
    attached = toy()
    before = {name: p.detach().clone() for name, p in attached.parameters.items()}
    per_example.engine_of(attached)
    assert all(torch.equal(before[name], p) for name, p in attached.parameters.items())
    assert all(p.grad is None for p in attached.parameters.values())


class Mixing(torch.nn.Module):
    """Subtracts the mean over the batch: couples examples, as batch norm would."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        return out - 0.5 * out.mean(dim=0, keepdim=True)


class Flattening(torch.nn.Module):
    """Hides the batch dimension from the layer, as routed experts do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize(("wrap", "cause"), [(Mixing, "differ"), (Flattening, "saw shape")])
def test_gates_fall_back_to_the_loop(toy, toy_examples, wrap, cause):
    attached = toy("llama", "lora")
    layer = attached.model.base_model.model.model.layers[0]
    layer.mlp.down_proj = wrap(layer.mlp.down_proj)
    engine = per_example.engine_of(attached)
    assert engine.name == "loop"
    assert cause in engine.reason
    total, norms = per_example.clipped_sum(attached, collate(toy_examples(3), 0), 1.0)
    assert np.isfinite(total).all() and len(norms) == 3


def test_a_stray_trainable_is_refused(toy, toy_examples):
    attached = toy()
    next(p for n, p in attached.model.named_parameters() if "lora_A" in n).requires_grad_(True)
    with pytest.raises(PrivacyError, match="no clip covers it"):
        per_example.clipped_sum(attached, collate(toy_examples(2), 0), 1.0)


def test_clipped_sum_equals_the_naive_sum(toy, toy_examples):
    attached, examples = toy(), toy_examples(6)
    attached.model.eval()
    rows = naive(attached, examples).double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    clip = float(np.median(norms))
    expected = sum(row * min(1.0, clip / norm) for row, norm in zip(rows, norms, strict=True))
    total, found = per_example.clipped_sum(attached, collate(examples, 0), clip)
    assert total.dtype == np.float64
    np.testing.assert_allclose(found, norms, rtol=1e-4)
    np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["lora-b", "ia3"])
@pytest.mark.parametrize("clip", [1e-3, 0.1, 10.0])
def test_one_record_moves_the_sum_by_at_most_the_clip(toy, toy_examples, method, clip):
    attached, examples = toy("llama", method), toy_examples(7, seed=3)
    whole, _ = per_example.clipped_sum(attached, collate(examples, 0), clip)
    for index in range(7):
        rest = [example for i, example in enumerate(examples) if i != index]
        without, _ = per_example.clipped_sum(attached, collate(rest, 0), clip)
        assert np.linalg.norm(whole - without) <= clip * (1 + 1e-6) + 1e-7


def test_physical_batches_add_up(toy, toy_examples, monkeypatch):
    attached, batch = toy(), collate(toy_examples(7), 0)
    whole, norms = per_example.clipped_sum(attached, batch, 0.1)
    monkeypatch.setattr(per_example, "VALUES_AT_ONCE", 3 * attached.layout.size)
    cut, cut_norms = per_example.clipped_sum(attached, batch, 0.1)
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    np.testing.assert_allclose(cut_norms, norms, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora-b", "ia3"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_non_finite_gradient_counts_as_zero(toy, toy_examples, method, bad):
    attached, examples = toy("llama", method), toy_examples(4)
    weights = examples[1].weights.copy()
    weights[-1], weights[-2] = bad, -3e38
    poisoned = [examples[0], replace(examples[1], weights=weights), *examples[2:]]
    total, norms = per_example.clipped_sum(attached, collate(poisoned, 0), 0.5)
    clean, _ = per_example.clipped_sum(attached, collate([examples[0], *examples[2:]], 0), 0.5)
    assert not np.isfinite(norms[1])
    np.testing.assert_allclose(total, clean, atol=1e-6)


def test_an_empty_draw_is_noise_alone(toy, monkeypatch):
    attached = toy()
    drawn = np.linspace(-2, 2, attached.layout.size)
    monkeypatch.setattr(noise, "gaussian", lambda size, source: drawn[:size])
    step = dpsgd.noisy_gradient(attached, [], dpsgd.Mechanism(replace(PLAN, clip=0.5, noise_multiplier=3.0)))
    np.testing.assert_array_equal(step, (1.5 * drawn / 4).astype(np.float32))
    total, norms = per_example.clipped_sum(attached, collate([], 0), 1.0)
    assert not total.any() and norms.shape == (0,)


def test_noisy_gradient_is_sum_plus_noise_over_the_public_divisor(toy, toy_examples, monkeypatch):
    attached, examples = toy(), toy_examples(3)
    drawn = np.random.default_rng(0).normal(size=attached.layout.size)
    monkeypatch.setattr(noise, "gaussian", lambda size, source: drawn)
    batches = [(collate(examples[:1], 0), None), (collate(examples[1:], 0), None)]
    step = dpsgd.noisy_gradient(attached, batches, dpsgd.Mechanism(PLAN))
    total, _ = per_example.clipped_sum(attached, collate(examples, 0), PLAN.clip)
    np.testing.assert_allclose(step, (total + drawn) / 4, atol=1e-6)
    assert step.dtype == np.float32


def test_noise_reaches_every_parameter_with_the_stated_scale(toy, toy_examples):
    attached, plan = toy(), replace(PLAN, noise_multiplier=200.0)
    steps = np.stack([dpsgd.noisy_gradient(attached, [], dpsgd.Mechanism(plan)) for _ in range(400)])
    spread = np.concatenate([steps[:, s:e].std(keepdims=True).ravel() for s, e in _spans(attached)])
    np.testing.assert_allclose(spread, 200.0 / 4, rtol=0.1)


def _spans(attached):
    return zip(attached.layout.offsets[:-1], attached.layout.offsets[1:], strict=True)


def test_loss_of_a_batch_is_the_sum_of_single_losses(toy, toy_examples):
    attached, examples = toy("gpt2"), toy_examples(4)
    attached.model.eval()
    whole = per_example_loss(attached.model, collate(examples, 0))
    single = torch.cat([per_example_loss(attached.model, collate([e], 0)) for e in examples])
    torch.testing.assert_close(whole, single)


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"quantisation": "int8"},
        {"gradient_checkpointing": True},
        {"quantisation": "nf4", "gradient_checkpointing": True},
    ],
)
def test_real_adapters_on_real_bases(tiny_base, toy_examples, method, settings):
    from fedpeft.adapters import attach
    from fedpeft.config.models import AdapterConfig

    attached = attach(
        tiny_base("llama", **settings), AdapterConfig(skip_layers=(), method=method, rank=4), seed=0
    )
    assert per_example.engine_of(attached).name == ("batched" if method == "lora" else "loop")
    batch = collate(toy_examples(4), 0)
    found = rows_of(attached, batch)
    slow = rows_of(attached, batch, LOOP)
    assert slow.norm() > 0
    torch.testing.assert_close(found, slow, rtol=1e-3, atol=1e-5)
    assert all(p.requires_grad and p.grad is None for p in attached.parameters.values())


def test_a_batch_is_summed_in_float64():
    """Of a thousand aligned gradients float32 loses parts of a clip, which neighbours would see."""
    places = [per_example.Place(0, 1, None)]
    total = per_example._Total(places, per_example.JointClip(1.0), torch.device("cpu"))
    row = torch.full((1000, 1), 0.1)
    total.add([row], torch.zeros(1000))
    exact = 1000 * float(row[0, 0])
    assert abs(float(total.values[0]) - exact) < 1e-9
