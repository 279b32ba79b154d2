"""Plans from scripts of Opacus, and why ghost clipping is no engine."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import Steps, epsilon
from fedpeft.private import from_opacus

RUN = {"steps_per_round": 5, "rounds": 4, "delta": 1e-5}


def script(records=200, batch=20, accountant="prv", **settings):
    """An engine and what its ``make_private`` returns for a tiny network."""
    from opacus import PrivacyEngine

    network = torch.nn.Linear(4, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(records, 4), torch.randn(records, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = PrivacyEngine(accountant=accountant)
        made = engine.make_private(
            module=network,
            optimizer=optimiser,
            data_loader=DataLoader(data, batch_size=batch),
            **({"noise_multiplier": 1.1, "max_grad_norm": 0.5} | settings),
        )
    return engine, *made


def read(parts, **changes):
    engine, _, optimiser, *_, loader = parts
    return from_opacus(engine, optimiser, loader, **(RUN | changes))


def subjects(result):
    return [difference.subject for difference in result.differences]


def train(parts, steps):
    _, network, optimiser, loader = parts
    for (inputs, outputs), _ in zip(loader, range(steps), strict=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (network(inputs) - outputs).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_a_script_becomes_a_plan_with_its_rate_noise_clip_and_divisor(accountant):
    result = read(script(accountant=accountant))
    plan = result.plan
    assert (plan.unit, plan.trust, plan.reproducible) == ("record", "local", False)
    assert (plan.sampling_probability, plan.expected_batch_size) == (0.1, 20)
    assert (plan.noise_multiplier, plan.clip, plan.delta) == (1.1, 0.5, 1e-5)
    assert (plan.steps_per_round, plan.rounds) == (5, 4)
    assert result.epsilon == epsilon([Steps(0.1, 1.1, 20)], 1e-5) == result.epsilon_with_spent
    assert result.spent == () and "history" not in subjects(result)
    assert result.epsilon <= result.opacus_epsilon <= 1.4 * result.epsilon
    assert subjects(result) == ["rate", "divisor", "noise", "clip", "accountant"]


def test_rate_and_divisor_of_a_script_tell_the_number_of_records():
    """Opacus #819: one more record is one more batch. Public constants may be put in their place."""
    one, more = read(script(128, 64)), read(script(129, 64))
    assert (one.plan.sampling_probability, one.plan.expected_batch_size) == (1 / 2, 64)
    assert (more.plan.sampling_probability, more.plan.expected_batch_size) == (1 / 3, 43)
    public = {"sampling_probability": 0.4, "expected_batch_size": 50}
    assert replace(one.plan, **public) == replace(more.plan, **public)


def test_a_loader_whose_number_of_steps_is_rounded_draws_at_another_rate_than_it_accounts_for():
    """1 / (1 / 93) is below 93 in binary, so that ``make_private`` accounts for 92 batches."""
    result = read(script(93, 1))
    assert result.plan.sampling_probability == 1 / 93
    (sampler,) = (d for d in result.differences if d.subject == "sampler")
    assert "1 / 92" in sampler.opacus


def test_a_divisor_that_opacus_rounds_to_nothing_is_refused():
    """49 * (1 / 49) is below 1 in binary."""
    with pytest.raises(PrivacyError, match="expected_batch_size = 0 is no divisor"):
        read(script(49, 1))


def test_steps_that_were_taken_are_spent_and_not_in_the_plan():
    parts = script()
    train(parts, 3)
    result = read(parts)
    assert result.spent == (Steps(0.1, 1.1, 3),)
    assert result.plan == read(script()).plan
    assert result.epsilon_with_spent == epsilon([Steps(0.1, 1.1, 23)], 1e-5) > result.epsilon
    assert subjects(result)[-1] == "history" and "3 steps" in str(result)


def test_batches_of_fixed_size_are_named():
    result = read(script(poisson_sampling=False))
    (sampler,) = (d for d in result.differences if d.subject == "sampler")
    assert "fixed size" in sampler.opacus and result.plan.sampling_probability == 0.1


def test_a_sum_that_is_not_divided_is_named():
    result = read(script(loss_reduction="sum"))
    assert any("learning rate" in d.fedpeft for d in result.differences if d.subject == "divisor")


def test_the_accountant_by_the_central_limit_is_named_as_no_bound():
    assert "no upper bound" in str(read(script(accountant="gdp")))


def test_ghost_clipping_reads_as_the_same_plan():
    assert read(script(grad_sample_mode="ghost")).plan == read(script()).plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clipping": "per_layer", "max_grad_norm": [0.5, 0.5]}, "'per_layer' clips every tensor"),
        (
            {
                "clipping": "adaptive",
                "target_unclipped_quantile": 0.5,
                "clipbound_learning_rate": 0.2,
                "max_clipbound": 2.0,
                "min_clipbound": 0.1,
                "unclipped_num_std": 1.0,
            },
            "'adaptive' moves the clip",
        ),
        ({"noise_multiplier": 0.0}, "noise_multiplier = 0.0 must be finite and above 0"),
    ],
)
def test_what_no_plan_describes_is_refused_by_name(settings, message):
    with pytest.raises(PrivacyError, match=message):
        read(script(**settings))


def test_what_is_not_of_opacus_is_refused():
    engine, network, optimiser, loader = script()
    with pytest.raises(PrivacyError, match="needs the DPOptimizer of Opacus' make_private, not SGD"):
        from_opacus(engine, optimiser.original_optimizer, loader, **RUN)
    with pytest.raises(PrivacyError, match="needs the DataLoader"):
        from_opacus(engine, optimiser, network, **RUN)


class Weighted:
    """A loss that weighs the outputs of each token, so that a record's gradient is ``sum_t weight_t x_t``."""

    reduction = "sum"

    def __call__(self, outputs, weights):
        return (outputs[..., 0] * weights).sum(1)


def moved_by(mode, record, clip):
    """How far one record moves the noiseless, clipped sum of Opacus."""
    from opacus import PrivacyEngine

    inputs, weights = record
    network = torch.nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    loader = DataLoader(TensorDataset(inputs, weights), batch_size=1)
    settings = {"poisson_sampling": False, "loss_reduction": "sum", "criterion": Weighted()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, optimiser, *criterion, _ = PrivacyEngine().make_private(
            module=network,
            optimizer=optimiser,
            data_loader=loader,
            noise_multiplier=0.0,
            max_grad_norm=clip,
            grad_sample_mode=mode,
            **settings,
        )
        losses = criterion[0] if criterion else lambda outputs, w: Weighted()(outputs, w).sum()
        before = [p.detach().clone() for p in network.parameters()]
        losses(network(inputs), weights).backward()
        optimiser.step()
    return float((before[0] - next(network.parameters()).detach()).norm())


def test_ghost_clipping_lets_a_record_pass_uncut():
    """Its norm comes from products of tokens in float32, not from the gradient it adds (decision 0079)."""
    clip, moves = 0.01, {"hooks": [], "ghost": []}
    for size in (1e3, 1e4, 1e5):
        weights = torch.full((1, 64), size)
        weights[:, 1::2] *= -1
        weights[:, 0] += 1  # the gradient of this record is 1, a hundred clips
        for mode, found in moves.items():
            found.append(moved_by(mode, (torch.ones(1, 64, 1), weights), clip))
    assert max(moves["hooks"]) <= clip * (1 + 1e-6)
    assert max(moves["ghost"]) > 10 * clip
