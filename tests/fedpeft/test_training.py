"""Local training and evaluation against naive twins."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from fedpeft.config.models import FederationConfig
from fedpeft.data import collate
from fedpeft.data.batches import epochs, physical
from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.evaluation.metrics import evaluate, spellings
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.training import LocalPlan, per_example_loss, train_local
from fedpeft.training.dp import dpsgd
from fedpeft.training.local import Extras
from fedpeft.training.loss import task_of, token_logits
from fedpeft.training.optimisers import AdamW, Sgd
from fedpeft.training.plan import PerformanceFlags

PLAN = LocalPlan(steps=4, batch_size=4, lr=0.05)
PRIVACY = PrivacyPlan(
    sampling_probability=0.4,
    noise_multiplier=1.0,
    clip=0.5,
    expected_batch_size=4,
    steps_per_round=4,
    rounds=2,
    delta=1e-5,
)


def flat(attached):
    return torch.cat([attached.parameters[n].detach().reshape(-1) for n in attached.layout.names]).clone()


def naive_loss(model, example):
    logits = model(input_ids=torch.from_numpy(example.ids)[None]).logits[0].float()
    scores = torch.log_softmax(logits, -1)
    terms = [-float(example.weights[t]) * scores[t - 1, example.ids[t]] for t in range(1, len(example.ids))]
    return sum(terms) / float(example.weights[1:].sum())


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_loss_equals_the_unpadded_full_pass(toy, toy_examples, arch):
    model, examples = toy(arch).model.eval(), toy_examples(6)
    examples[0] = replace(examples[0], weights=np.linspace(0, 1, len(examples[0].ids), dtype=np.float32))
    found = per_example_loss(model, collate(examples, 0))
    expected = torch.stack([naive_loss(model, example) for example in examples])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_loss_without_weights_is_zero(toy, toy_examples):
    model, examples = toy().model.eval(), toy_examples(2)
    silent = replace(examples[0], weights=np.zeros_like(examples[0].weights))
    loss = per_example_loss(model, collate([silent, examples[1]], 0))
    assert loss[0] == 0 and loss[1] > 0
    assert per_example_loss(model, collate([silent], 0)).tolist() == [0]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_the_head_at_chosen_positions_equals_the_full_pass(toy, arch):
    model = toy(arch).model.eval()
    ids = torch.arange(24).reshape(3, 8) % 60
    rows, columns = torch.tensor([0, 0, 2]), torch.tensor([1, 7, 4])
    expected = model(input_ids=ids).logits[rows, columns]
    torch.testing.assert_close(token_logits(model, ids, rows, columns), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_mixes_positions_is_computed_in_full(toy):
    model = toy().model.eval()
    inner = model.base_model.model
    forward = inner.forward

    def shifted(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits + out.logits.mean(dim=1, keepdim=True)
        return out

    inner.forward = shifted
    ids, at = torch.arange(16).reshape(2, 8), torch.tensor([1])
    expected = model(input_ids=ids).logits[at, at]
    torch.testing.assert_close(token_logits(model, ids, at, at), expected)


def test_tasks_are_told_apart(toy):
    assert task_of(toy().model) == "causal-lm"
    assert task_of(toy("llama-classifier", "lora").model) == "sequence-classification"


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_optimisers_equal_torch(rule):
    rng = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=rng)
    theirs = torch.nn.Parameter(ours.clone())
    if rule == "adamw":
        mine = AdamW(0.03)
        reference = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.95), weight_decay=0.0)
    else:
        mine = Sgd(0.03, 0.9)
        reference = torch.optim.SGD([theirs], lr=0.03, momentum=0.9)
    for _ in range(7):
        gradient = torch.randn(50, generator=rng)
        mine.step(ours, gradient)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_sgd_training_equals_a_naive_loop(toy, toy_examples):
    attached, twin, examples = toy(seed=5), toy(seed=5), toy_examples(9)
    plan = replace(PLAN, optimiser="sgd", momentum=0.0, max_grad_norm=0.3)
    result = train_local(attached, examples, plan, np.random.default_rng(1))
    losses, values = [], flat(twin)
    twin.model.eval()
    for indices in islice(epochs(9, 4, np.random.default_rng(1)), 4):
        loss = sum(naive_loss(twin.model, examples[i]) for i in indices) / 4
        gradient = torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(loss, [twin.parameters[n] for n in twin.layout.names])
            ]
        )
        values = values - plan.lr * gradient * min(1.0, 0.3 / float(gradient.norm()))
        for name, part in twin.layout.split(values.numpy()).items():
            twin.parameters[name].data.copy_(torch.from_numpy(part))
        losses.append(float(loss.detach()))
    torch.testing.assert_close(flat(attached), values, rtol=1e-4, atol=1e-5)
    assert result.loss_first == pytest.approx(losses[0], rel=1e-4)
    assert result.loss_last == pytest.approx(losses[-1], rel=1e-4)


def test_training_is_a_function_of_its_arguments(toy, toy_examples):
    examples, runs = toy_examples(9), []
    for noise in (1, 2):
        attached = toy(seed=5)
        torch.manual_seed(noise)
        train_local(attached, examples, PLAN, np.random.default_rng(3))
        runs.append(flat(attached))
    assert torch.equal(*runs)


def test_training_learns_and_leaves_no_trace(toy, toy_examples):
    attached, examples = toy(), toy_examples(8)
    attached.model.train()
    drawn, plan = set(), replace(PLAN, steps=30)
    extras = Extras(on_draw=drawn.update)
    result = train_local(attached, examples, plan, np.random.default_rng(0), extras=extras)
    assert result.loss_last < result.loss_first
    assert result.steps == 30 and result.seen == tuple(sorted(drawn)) == tuple(range(8))
    assert all(p.grad is None for p in attached.parameters.values())
    assert attached.model.training


def test_physical_batches_change_nothing_but_rounding(toy, toy_examples):
    whole, cut, examples = toy(seed=5), toy(seed=5), toy_examples(9)
    plan = replace(PLAN, optimiser="sgd", steps=3)
    train_local(whole, examples, plan, np.random.default_rng(3))
    small = Extras(flags=PerformanceFlags(tokens_at_once=20))
    train_local(cut, examples, plan, np.random.default_rng(3), None, small)
    torch.testing.assert_close(flat(whole), flat(cut), rtol=1e-4, atol=1e-5)


def test_the_tap_sees_the_first_gradient_once(toy, toy_examples):
    attached, examples, seen = toy(), toy_examples(9), []

    def tap(gradient, batch):
        seen.append((gradient, batch))

    train_local(attached, examples, PLAN, np.random.default_rng(3), None, Extras(tap))
    ((gradient, batch),) = seen
    twin = toy()
    twin.model.eval()
    per_example_loss(twin.model, batch).mean().backward()
    expected = torch.cat([twin.parameters[n].grad.reshape(-1) for n in twin.layout.names])
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-3, atol=1e-6)
    assert len(batch) == 4 and gradient.dtype == np.float32


def test_no_examples_are_refused_without_privacy_only(toy):
    with pytest.raises(DataError, match="no training examples"):
        train_local(toy(), [], PLAN, np.random.default_rng(0))
    attached = toy()
    before = flat(attached)
    train_local(attached, [], PLAN, np.random.default_rng(0), PRIVACY)
    assert not torch.equal(before, flat(attached))


@pytest.mark.parametrize("method", ["lora-b", "ia3"])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_private_training_says_nothing_about_the_data(toy, toy_examples, method, rule):
    attached, examples = toy("llama", method), toy_examples(9)
    before = flat(attached)
    plan = replace(PLAN, optimiser=rule)
    result = train_local(attached, examples, plan, np.random.default_rng(0), PRIVACY)
    assert (result.steps, result.loss_first, result.loss_last, result.seen) == (4, None, None, None)
    assert torch.isfinite(flat(attached)).all() and not torch.equal(before, flat(attached))


def test_private_training_ignores_the_seed(toy, toy_examples):
    runs = []
    for _ in range(2):
        attached = toy(seed=5)
        train_local(attached, toy_examples(9), PLAN, np.random.default_rng(0), PRIVACY)
        runs.append(flat(attached))
    assert not torch.equal(*runs)


def test_private_steps_use_noisy_gradients_alone(toy, toy_examples, monkeypatch):
    attached, fixed = toy(seed=5), []

    def constant(attached, batches, mechanism):
        fixed.append(sum(len(batch) for batch, _ in batches))
        return np.full(attached.layout.size, 0.5, np.float32)

    monkeypatch.setattr("fedpeft.training.local.noisy_gradient", constant)
    before = flat(attached)
    plan = replace(PLAN, optimiser="sgd", momentum=0.0)
    train_local(attached, toy_examples(9), plan, np.random.default_rng(0), PRIVACY)
    torch.testing.assert_close(flat(attached), before - 4 * 0.05 * 0.5)
    assert len(fixed) == 4


def test_private_divisor_and_rate_do_not_follow_n(toy, toy_examples, monkeypatch):
    """One record more must not change divisor or rate (a known trap of other libraries)."""
    rates = []
    monkeypatch.setattr("fedpeft.privacy.noise.gaussian", lambda size, source: np.zeros(size))
    monkeypatch.setattr(
        "fedpeft.training.privacy_units.poisson",
        lambda n, q, source: rates.append(q) or np.arange(0, dtype=np.int64),
    )
    for count in (8, 9):
        train_local(toy(), toy_examples(count), PLAN, np.random.default_rng(0), PRIVACY)
    assert set(rates) == {PRIVACY.sampling_probability}
    attached, examples = toy(), toy_examples(9)
    mechanism = dpsgd.Mechanism(PRIVACY)
    few = dpsgd.noisy_gradient(attached, [(collate(examples[:8], 0), None)], mechanism)
    more = dpsgd.noisy_gradient(attached, [(collate(examples, 0), None)], mechanism)
    assert np.linalg.norm(more - few) <= PRIVACY.clip / PRIVACY.expected_batch_size * (1 + 1e-5)


def test_more_steps_than_accounted_are_refused(toy, toy_examples):
    with pytest.raises(PrivacyError, match="accounts for 4"):
        train_local(toy(), toy_examples(4), replace(PLAN, steps=5), np.random.default_rng(0), PRIVACY)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"optimiser": "x"},
    ],
)
def test_nonsense_plans_are_refused(change):
    with pytest.raises(ConfigError, match="local training"):
        replace(PLAN, **change)


def test_the_rate_falls_over_the_run():
    federation = FederationConfig(rounds=5, lr=0.1, lr_decay=0.5)
    rates = [LocalPlan.of(federation, round).lr for round in range(1, 6)]
    assert rates == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05])
    assert LocalPlan.of(FederationConfig(rounds=1, lr=0.1), 1).lr == 0.1


def test_epochs_are_without_replacement():
    drawn = list(islice(epochs(10, 3, np.random.default_rng(0)), 6))
    assert all(len(batch) == 3 for batch in drawn)
    assert len(set(np.concatenate(drawn[:3]).tolist())) == 9
    assert sorted(next(epochs(2, 5, np.random.default_rng(0))).tolist()) == [0, 1]


def test_physical_batches_hold_every_example_once(toy, toy_examples):
    model, examples = toy().model, toy_examples(20)
    batches = list(physical(model, examples, 40))
    assert all(batch.ids.numel() <= 40 for batch in batches) and len(batches) > 1
    found = [tuple(b.ids[i, : b.lengths[i]].tolist()) for b in batches for i in range(len(b))]
    assert sorted(found) == sorted(tuple(example.ids.tolist()) for example in examples)
    assert len(list(physical(model, examples, 1))) == 20


class Speller:
    """A tokenizer that spells each label by its letters."""

    eos_token_id = 2

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [10 + ord(letter) - ord("a") for letter in text]}


def labelled(examples, completions):
    out = []
    for index, example in enumerate(examples):
        tail = np.array(completions[index % len(completions)], np.int64)
        prompt = example.ids[:-3]
        weights = np.concatenate([np.zeros(len(prompt)), np.ones(len(tail))]).astype(np.float32)
        ids = np.concatenate([prompt, tail])
        out.append(replace(example, ids=ids, weights=weights, label_index=index % len(completions)))
        out[-1] = replace(out[-1], prompt_length=len(prompt))
    return out


@pytest.mark.parametrize("completions", [[(5, 2), (6, 7, 2), (8, 2)], [(5, 6, 2), (5, 7, 9, 2), (8, 2)]])
def test_evaluation_equals_the_naive_twin(toy, toy_examples, completions):
    attached = toy()
    examples = labelled(toy_examples(31), completions)
    found = evaluate(attached, examples, ["a", "b", "c"], Speller())
    losses, hits = [], 0
    distinct = len({spelling[0] for spelling in completions}) == 3
    with torch.no_grad():
        attached.model.eval()
        for example in examples:
            losses.append(float(naive_loss(attached.model, example)))
            prompt, scores = example.ids[: example.prompt_length], []
            for spelling in completions:
                used = spelling[:1] if distinct else spelling
                ids = torch.tensor([[*prompt.tolist(), *used]])
                logs = torch.log_softmax(attached.model(input_ids=ids).logits[0], -1)
                scores.append(sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(used)))
            hits += int(np.argmax(scores)) == example.label_index
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.accuracy == pytest.approx(hits / 31)
    assert found.count == 31


def test_evaluation_accepts_a_model_and_no_labels(toy, toy_examples):
    attached, examples = toy(), toy_examples(5)
    attached.model.train()
    found = evaluate(attached.model, examples, None, Speller())
    assert found.accuracy is None and found.loss == evaluate(attached, examples, None, Speller()).loss
    assert attached.model.training


def test_evaluation_of_a_classifier(toy, toy_examples):
    attached, examples = toy("llama-classifier", "lora"), toy_examples(11, classes=3)
    found = evaluate(attached, examples, ["a", "b", "c"], None)
    losses, hits = [], 0
    with torch.no_grad():
        for example in examples:
            ids = torch.from_numpy(example.ids)[None]
            logits = attached.model.eval()(input_ids=ids).logits
            losses.append(
                float(torch.nn.functional.cross_entropy(logits, torch.tensor([example.label_index])))
            )
            hits += int(logits.argmax()) == example.label_index
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.accuracy == pytest.approx(hits / 11)


def test_a_classifier_trains(toy, toy_examples):
    attached, examples = toy("llama-classifier", "lora"), toy_examples(9, classes=3)
    before = evaluate(attached, examples, None, None).loss
    train_local(attached, examples, replace(PLAN, steps=40, lr=0.02), np.random.default_rng(0))
    assert evaluate(attached, examples, None, None).loss < before
    train_local(attached, examples, PLAN, np.random.default_rng(0), PRIVACY)


def test_labels_that_no_example_shows_are_spelled_by_the_tokenizer(toy_examples):
    examples = [e for e in labelled(toy_examples(6), [(5, 2), (6, 2), (8, 2)]) if e.label_index != 2]
    assert spellings(examples, ["a", "b", "cd"], Speller()) == [(5, 2), (6, 2), (12, 13, 2)]


def test_evaluation_refuses_nothing_and_unlabelled(toy, toy_examples):
    with pytest.raises(DataError, match="empty"):
        evaluate(toy(), [], None, Speller())
    with pytest.raises(DataError, match="no label"):
        evaluate(toy(), toy_examples(2), ["a"], Speller())


def test_importing_the_packages_is_light():
    import subprocess
    import sys

    code = (
        "import sys, fedpeft.training, fedpeft.privacy, fedpeft.privacy.plan, fedpeft.privacy.ledger, "
        "fedpeft.training.plan; print({'torch', 'dp_accounting', 'scipy', 'transformers'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
