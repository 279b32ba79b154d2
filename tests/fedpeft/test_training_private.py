"""Private local training: units, supports, engines and seeded runs against naive twins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.errors import ConfigError, DataError, PrivacyError
from fedpeft.privacy import noise
from fedpeft.privacy.csprng import seeded
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.sampling import poisson
from fedpeft.secagg.discrete_gaussian import share_of_noise
from fedpeft.training import LocalPlan, per_example_loss, train_local
from fedpeft.training.local import Extras
from fedpeft.training.modes import steady
from fedpeft.training.plan import PerformanceFlags
from fedpeft.training.privacy_units import units_of

PLAN = LocalPlan(steps=3, batch_size=4, lr=0.05, optimiser="sgd", momentum=0.5)
PRIVACY = PrivacyPlan(
    sampling_probability=0.6,
    noise_multiplier=0.5,
    clip=0.1,
    expected_batch_size=4,
    steps_per_round=4,
    rounds=2,
    delta=1e-5,
    reproducible=True,
)
PERSONS = replace(PRIVACY, unit="person", records_per_unit=2)
SINGLE = replace(PERSONS, drawn="record")


def flat(attached):
    return torch.cat([attached.parameters[n].detach().reshape(-1) for n in attached.layout.names]).clone()


def with_persons(examples):
    names = "abcabcdaef"
    return [replace(example, person=names[index]) for index, example in enumerate(examples)]


def run(attached, examples, privacy, seed=0, **settings):
    extras = Extras(**settings)
    return train_local(attached, examples, PLAN, np.random.default_rng(seed), privacy, extras)


def unit_gradient(attached, examples):
    """Plain autograd: the mean over the records of one unit, float64."""
    attached.model.zero_grad()
    for example in examples:
        ids, weights = torch.from_numpy(example.ids)[None], torch.from_numpy(example.weights)[1:]
        scores = torch.log_softmax(attached.model(input_ids=ids).logits[0], -1)
        loss = -(scores[:-1].gather(1, ids[0, 1:, None])[:, 0] * weights).sum() / weights.sum()
        (loss / len(examples)).backward()
    grads = [attached.parameters[name].grad.reshape(-1) for name in attached.layout.names]
    attached.model.zero_grad()
    return torch.cat(grads).double().numpy()


def first_of(unit, most, source):
    """The records of the smallest words, where there are more than may be used."""
    if len(unit) <= most:
        return unit
    words = source(len(unit)).tolist()
    return sorted(unit[place] for place in sorted(range(len(unit)), key=words.__getitem__)[:most])


def naive_draw(units, privacy, source):
    if privacy.drawn == "record":
        eligible = [index for unit in units for index in first_of(unit, privacy.records_per_unit, source)]
        return [[eligible[place]] for place in poisson(len(eligible), privacy.sampling_probability, source)]
    drawn = poisson(len(units), privacy.sampling_probability, source)
    return [first_of(units[unit], privacy.records_per_unit, source) for unit in drawn]


def naive_noise(total, privacy, source):
    """Gaussian; or the sum in whole steps, each rounded up by a coin of its fraction, and integers added."""
    if privacy.grid is None:
        return total + privacy.noise_multiplier * privacy.clip * noise.gaussian(len(total), source)
    step = privacy.clip / privacy.grid.steps_per_clip
    variance = (privacy.noise_multiplier * privacy.grid.steps_per_clip) ** 2
    integers = share_of_noise(len(total), variance, source).astype(object)
    for place, word in enumerate(source(len(total)).tolist()):
        exact = total[place] / step
        whole = math.floor(exact)
        integers[place] += whole + (word / 2**64 < exact - whole)
    return integers.astype(np.float64) * step


def naive_round(attached, examples, privacy, support):
    """DP-SGD as algorithm 1 of Abadi et al. says it, from the same words; its end values."""
    source, units = seeded(np.random.default_rng(0).bytes(32)), units_of(examples, privacy)
    values, velocity = flat(attached).double().numpy(), np.zeros(attached.layout.size)
    inside = np.zeros(attached.layout.size, bool)
    inside[slice(None) if support is None else support] = True
    for step in range(PLAN.steps):
        total = np.zeros(attached.layout.size)
        for unit in naive_draw(units, privacy, source):
            gradient = unit_gradient(attached, [examples[index] for index in unit]) * inside
            total += gradient * min(1, privacy.clip / np.linalg.norm(gradient))
        total[inside] = naive_noise(total[inside], privacy, source)
        gradient = total / privacy.expected_batch_size
        velocity = gradient if step == 0 else PLAN.momentum * velocity + gradient
        values = values - PLAN.lr * velocity
        for name, part in zip(
            attached.layout.names, np.split(values, attached.layout.offsets[1:-1]), strict=True
        ):
            parameter = attached.parameters[name]
            parameter.data = torch.from_numpy(part.astype(np.float32)).reshape(parameter.shape)
    return values


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("engine", ["auto", "loop", "opacus"])
@pytest.mark.parametrize("privacy", [PRIVACY, PERSONS, SINGLE], ids=["records", "persons", "single"])
@pytest.mark.parametrize("thin", [False, True], ids=["all", "support"])
def test_a_seeded_round_equals_the_naive_twin(toy, toy_examples, method, engine, privacy, thin):
    examples = with_persons(toy_examples(10))
    mine, twin = toy("llama", method), toy("llama", method)
    support = np.arange(1, mine.layout.size, 3) if thin else None
    flags = PerformanceFlags(engine=engine, tokens_at_once=40)
    if (method, engine) == ("ia3", "opacus"):
        with pytest.raises(PrivacyError, match=r"run\.engine = 'opacus' is wrong here: a trainable"):
            run(mine, examples, privacy, flags=flags, support=support)
        return
    result = run(mine, examples, privacy, flags=flags, support=support)
    with steady(twin.model):
        wanted = naive_round(twin, examples, privacy, support)
    np.testing.assert_allclose(flat(mine).numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert (result.steps, result.loss_first, result.loss_last, result.seen) == (3, None, None, None)


@pytest.mark.parametrize("privacy", [PRIVACY, PERSONS, SINGLE], ids=["records", "persons", "single"])
def test_a_seeded_round_of_integers_equals_the_naive_twin(toy, toy_examples, privacy):
    examples, mine, twin = with_persons(toy_examples(10)), toy(), toy()
    privacy = replace(privacy, grid=Grid(mine.layout.size, 2000.0, 1, limit=2**50))
    run(mine, examples, privacy)
    with steady(twin.model):
        wanted = naive_round(twin, examples, privacy, None)
    # a value next to a coin's edge may be rounded to either side: one step of the grid
    step = PLAN.lr * privacy.clip / 2000 / privacy.expected_batch_size
    np.testing.assert_allclose(flat(mine).numpy(), wanted, rtol=1e-5, atol=4 * step)
    assert np.median(np.abs(flat(mine).numpy() - wanted)) < step / 100


def test_what_integers_release_is_a_function_of_integers(toy, toy_examples):
    """Nothing of a real number is left: each value times the divisor is a whole number of steps."""
    attached, seen = toy(), []
    privacy = replace(PRIVACY, grid=Grid(attached.layout.size, 2000.0, 1, limit=2**50))
    extras = Extras(lambda gradient, _: seen.append(gradient.copy()))
    train_local(attached, toy_examples(9), PLAN, np.random.default_rng(0), privacy, extras)
    integers = seen[0].astype(np.float64) * privacy.expected_batch_size * 2000 / privacy.clip
    assert np.abs(integers - np.rint(integers)).max() < 2**-24 * np.abs(integers).max() * 2
    assert len(np.unique(np.rint(integers))) > 100


def test_a_seeded_round_is_a_function_of_its_arguments(toy, toy_examples):
    examples, ends = toy_examples(9), []
    for seed in (0, 0, 1):
        attached = toy()
        run(attached, examples, PRIVACY, seed)
        ends.append(flat(attached))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_an_unseeded_round_never_touches_the_stream(toy, toy_examples):
    class Forbidden:
        def __getattr__(self, name):
            raise AssertionError(f"the stream was asked for {name}")

    ends = []
    for _ in range(2):
        attached = toy()
        train_local(attached, toy_examples(5), PLAN, Forbidden(), replace(PRIVACY, reproducible=False))
        ends.append(flat(attached))
    assert not torch.equal(*ends)


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("count", [0, 9])
def test_values_off_the_support_do_not_move(toy, toy_examples, rule, count):
    attached = toy()
    before, support = flat(attached), np.arange(0, attached.layout.size, 5)
    plan = replace(PLAN, optimiser=rule)
    extras = Extras(support=support)
    train_local(attached, toy_examples(count), plan, np.random.default_rng(0), PRIVACY, extras)
    moved = torch.nonzero(flat(attached) != before)[:, 0].numpy()
    np.testing.assert_array_equal(moved, support)


def test_the_batched_engine_is_refused_where_it_is_wrong(toy, toy_examples):
    attached = toy("llama", "ia3")
    before = flat(attached)
    with pytest.raises(PrivacyError, match="not in a plain linear layer"):
        run(attached, toy_examples(3), PRIVACY, flags=PerformanceFlags(engine="batched"))
    assert torch.equal(before, flat(attached))
    run(toy(), toy_examples(3), PRIVACY, flags=PerformanceFlags(engine="batched"))


def test_records_without_a_person_are_refused(toy, toy_examples):
    with pytest.raises(DataError, match=r"set data\.person"):
        run(toy(), toy_examples(3), PERSONS)


def test_plans_of_nodes_are_refused(toy, toy_examples):
    with pytest.raises(PrivacyError, match="records or persons"):
        run(toy(), toy_examples(3), replace(PRIVACY, unit="node", trust="central"))


def test_the_tap_sees_the_noisy_gradient_and_what_was_drawn(toy, toy_examples):
    attached, examples, drawn, seen = toy(), with_persons(toy_examples(10)), set(), []
    plan = replace(PLAN, steps=1, momentum=0.0)
    before = flat(attached)
    extras = Extras(lambda gradient, batch: seen.append((gradient, len(batch))), on_draw=drawn.update)
    train_local(attached, examples, plan, np.random.default_rng(0), PERSONS, extras)
    ((gradient, records),) = seen
    torch.testing.assert_close(flat(attached), before - 0.05 * torch.from_numpy(gradient))
    assert records == len(drawn) < 10


def test_flags_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="tokens_at_once"):
        PerformanceFlags(tokens_at_once=0)


def halved(model, batch):
    return per_example_loss(model, batch) / 2


@pytest.mark.parametrize("privacy", [None, PRIVACY])
def test_a_loss_of_ones_own_equals_the_platforms_where_it_is_the_same(toy, toy_examples, privacy):
    found = []
    for loss in (None, lambda model, batch: per_example_loss(model, batch)):
        attached = toy()
        flags = PerformanceFlags(engine="loop")
        run(attached, toy_examples(9), privacy, loss=loss, flags=flags)
        found.append(flat(attached))
    assert torch.equal(*found)


def test_a_loss_of_ones_own_is_the_one_that_is_clipped_and_trained_on(toy, toy_examples):
    """Half the loss under half the clip and half the noise is half the gradient."""
    gradients = []
    for privacy, loss in ((PRIVACY, None), (replace(PRIVACY, clip=PRIVACY.clip / 2), halved)):
        tap = gradients.append
        run(toy(), toy_examples(9), privacy, loss=loss, on_first_gradient=lambda g, _, tap=tap: tap(g.copy()))
    np.testing.assert_allclose(2 * gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_under_privacy_a_loss_of_ones_own_sees_one_record_at_a_time(toy, toy_examples):
    sizes = []

    def counted(model, batch):
        sizes.append(len(batch))
        return per_example_loss(model, batch)

    run(toy(), toy_examples(9), PRIVACY, loss=counted)
    assert sizes and set(sizes) == {1}
    with pytest.raises(PrivacyError, match="one's own"):
        run(toy(), toy_examples(9), PRIVACY, loss=counted, flags=PerformanceFlags(engine="batched"))
