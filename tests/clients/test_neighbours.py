"""A node on neighbouring data sets with equal randomness: what enters the noise, and what leaves the node.

The released steps of one world are replayed in the other, as adaptive composition has it: given equal
releases so far, the next sum may differ by the clip and nothing else may differ at all.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import toeplitz

from fedpeft.data import Record
from fedpeft.privacy.matrix import optimised
from fedpeft.training.dp.per_example import CLIP_MARGIN

CLIP = 0.05
RECORDS = [Record(f"note {place * 7919 % 1000} is", ("green", "red")[place % 2]) for place in range(129)]
ODD = Record("an unusual person " * 40, "red " * 30)
PRIVACY = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.2,
    "clip": CLIP,
    "max_noise_to_signal": 99.0,
}
SIGN = {"exchange": {"up": {"codec": "sign", "error_feedback": False}}}
TERNARY = {"exchange": {"up": {"codec": "ternary", "density": 0.1}}}
MASKED = {"exchange": {"up": {"codec": "masked-sign", "density": 0.3, "error_feedback": False}}}
SGD = {"federation": {"optimiser": "sgd"}}
PLAIN = {"federation": {"optimiser": "sgd", "momentum": 0.0}}


class World:
    """One node's round under recorded or replayed releases, with randomness that a counter decides."""

    def __init__(self, organisation, monkeypatch):
        self.organisation, self.patch = organisation, monkeypatch
        self.gradients, self.totals, self.sums = [], [], []
        self.integers, self.plan = [], None

    def run(self, records, replayed=(), **settings):
        """Reply, envelope and every file name that the round leaves; totals land in ``totals``.

        ``sums`` are what enters the noise, the loss included.

        The hash of the ledger's head is salted and left out.
        """
        from fedpeft.adapters import detach
        from fedpeft.privacy import csprng
        from fedpeft.training import local
        from fedpeft.training.dp import dpsgd
        from fedpeft_clients.process_cache import PROCESS
        from fedpeft_clients.rounds.handlers import train
        from fedpeft_clients.rounds.node_context import NodeContext

        self.gradients, self.totals, self.sums, self.integers = [], [], [], []
        home, coordinator = self.organisation(records=records, **settings)
        calls = itertools.count()
        keys = lambda size: hashlib.sha256(str(next(calls)).encode()).digest()[:size]  # noqa: E731
        inner, real, whole = dpsgd.noise.gaussian, dpsgd.noisy_gradient, dpsgd.summed
        seen, on_grid = [], dpsgd.noisy_grid

        def noisy_grid(*given):
            self.integers.append(on_grid(*given))
            return self.integers[-1]

        def summed(*given):
            self.sums.append(whole(*given).copy())
            return self.sums[-1].copy()

        def gaussian(size, source):
            seen.append(inner(size, source))
            return seen[-1]

        def noisy_gradient(attached, batches, mechanism):
            found = real(attached, batches, mechanism)
            plan, support = mechanism.plan, mechanism.support
            on = slice(None) if support is None else support
            self.plan = plan
            if plan.grid is None:
                drawn = seen[-1] if plan.bands == 1 else rows_of(seen, plan)[-1][on]
                drawn = drawn[: found[on].size]
                self.totals.append(found[on] * plan.expected_batch_size - plan.deviation * drawn)
            self.gradients.append(replayed[len(self.gradients)] if replayed else found)
            return self.gradients[-1]

        with self.patch.context() as patch:
            patch.setattr(csprng.os, "urandom", keys)
            patch.setattr(dpsgd.noise, "gaussian", gaussian)
            patch.setattr(dpsgd, "summed", summed)
            patch.setattr(dpsgd, "noisy_grid", noisy_grid)
            patch.setattr(local, "noisy_gradient", noisy_gradient)
            task = coordinator.first_task(expires=2e9)
            reply, envelope = train(NodeContext(home), task, b"")
        files = sorted(str(path.relative_to(home.path)) for path in home.path.rglob("*") if path.is_file())
        PROCESS.clear()
        detach()
        shutil.rmtree(home.path)
        return replace(reply, ledger=b""), envelope, files


def rows_of(fresh, plan):
    """The rows of ``C^-1 Z``, by the dense matrix."""
    column = np.zeros(len(fresh))
    column[: plan.bands] = optimised(plan.bands, plan.steps)[: len(fresh)]
    return np.linalg.solve(toeplitz(column, np.zeros(len(fresh))), np.array(fresh))


@pytest.fixture
def world(organisation, monkeypatch):
    return World(organisation, monkeypatch)


@pytest.mark.parametrize("more", [RECORDS[128], ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("exchange", [SIGN, TERNARY, MASKED], ids=["sign", "ternary", "masked"])
def test_one_record_moves_the_sum_by_the_clip_and_changes_nothing_that_leaves(world, more, exchange):
    """128 against 129 records: neither divisor nor rate nor message knows how many there are."""
    without = world.run(RECORDS[:128], privacy=PRIVACY, **exchange, **SGD)
    totals, gradients = world.totals, world.gradients
    included = 0
    with_more = world.run([*RECORDS[:128], more], replayed=gradients, privacy=PRIVACY, **exchange, **SGD)
    assert len(totals) == len(world.totals) == 2
    for mine, theirs in zip(totals, world.totals, strict=True):
        distance = np.linalg.norm(theirs - mine)
        assert distance <= CLIP * (1 + CLIP_MARGIN) + 1e-4 * CLIP
        included += distance > 0.01 * CLIP
    assert with_more == without
    assert included <= 2


@pytest.mark.parametrize("more", [RECORDS[128], ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("unit", ["record", "person"])
def test_with_bands_one_unit_moves_the_sum_of_one_step_of_its_group_and_nothing_that_leaves(
    world, more, unit
):
    """At a rate of one in its group: one of the two steps differs, by the clip, and the other not at all."""
    privacy = {**PRIVACY, "unit": unit, "sampling_probability": 0.5, "bands": 2}
    data = {"data": {"person": "person", "max_length": 32}} if unit == "person" else {}
    records = [replace(record, person=f"p{index}") for index, record in enumerate(RECORDS[:64])]
    without = world.run(records, privacy=privacy, **data, **MASKED, **PLAIN)
    totals, gradients = world.totals, world.gradients
    with_more = world.run(
        [*records, replace(more, person="new")],
        replayed=gradients,
        privacy=privacy,
        **data,
        **MASKED,
        **PLAIN,
    )
    moved = sorted(np.linalg.norm(b - a) for a, b in zip(totals, world.totals, strict=True))
    assert len(moved) == 2 and moved[0] < 1e-4 * CLIP
    assert 0.01 * CLIP < moved[1] <= CLIP * (1 + CLIP_MARGIN) + 1e-4 * CLIP
    assert with_more == without


def test_the_odd_record_does_reach_the_sum_when_it_is_drawn(world):
    """The test above can fail: with a rate of one the record moves both sums by the whole clip."""
    privacy = {**PRIVACY, "sampling_probability": 1.0}
    world.run(RECORDS[:16], privacy=privacy, **SIGN, **SGD)
    totals, gradients = world.totals, world.gradients
    world.run([*RECORDS[:16], ODD], replayed=gradients, privacy=privacy, **SIGN, **SGD)
    moved = [np.linalg.norm(b - a) for a, b in zip(totals, world.totals, strict=True)]
    assert moved == pytest.approx([CLIP, CLIP], rel=1e-3)


def test_a_person_with_many_records_moves_the_sum_by_one_clip(world):
    """All records of one person together are one unit; the others' draws stay as they are."""
    data, privacy = {"data": {"person": "person", "max_length": 32}}, {**PRIVACY, "unit": "person"}
    privacy |= {"sampling_probability": 1.0, "records_per_person": 3}
    own = [
        Record(record.prompt, record.completion, person=f"p{i % 8}") for i, record in enumerate(RECORDS[:24])
    ]
    extra = [Record(f"{ODD.prompt} {i}", ODD.completion, person="new") for i in range(5)]
    without = world.run(own, privacy=privacy, **data, **SIGN, **SGD)
    totals, gradients = world.totals, world.gradients
    with_more = world.run([*own, *extra], replayed=gradients, privacy=privacy, **data, **SIGN, **SGD)
    moved = [np.linalg.norm(b - a) for a, b in zip(totals, world.totals, strict=True)]
    assert moved == pytest.approx([CLIP, CLIP], rel=1e-3)
    assert with_more == without


def test_a_person_whose_records_are_drawn_moves_the_sum_by_a_clip_each_up_to_the_cap(world):
    data, privacy = {"data": {"person": "person", "max_length": 32}}, {**PRIVACY, "unit": "person"}
    privacy |= {"sampling_probability": 1.0, "records_per_person": 3, "sampling": "record"}
    own = [
        Record(record.prompt, record.completion, person=f"p{i % 8}") for i, record in enumerate(RECORDS[:24])
    ]
    extra = [Record(f"{ODD.prompt} {i}", ODD.completion, person="new") for i in range(5)]
    without = world.run(own, privacy=privacy, **data, **SIGN, **SGD)
    totals, gradients = world.totals, world.gradients
    with_more = world.run([*own, *extra], replayed=gradients, privacy=privacy, **data, **SIGN, **SGD)
    for mine, theirs in zip(totals, world.totals, strict=True):
        assert 2.5 * CLIP < np.linalg.norm(theirs - mine) <= 3 * CLIP * (1 + 1e-4)
    assert world.plan.event(2).records == 3 and with_more == without


@pytest.mark.parametrize("more", [RECORDS[128], ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("exchange", [SIGN, MASKED], ids=["sign", "masked"])
def test_one_record_moves_a_nodes_integers_by_their_sensitivity_and_nothing_that_leaves(
    world, more, exchange
):
    """Equal words of rounding and noise: what is left is the rounded gradient of the one record."""
    privacy = {**PRIVACY, "sampling_probability": 1.0, "noise": "discrete"}
    without = world.run(RECORDS[:16], privacy=privacy, **exchange, **SGD)
    before, gradients = world.integers, world.gradients
    with_more = world.run([*RECORDS[:16], more], replayed=gradients, privacy=privacy, **exchange, **SGD)
    assert len(before) == len(world.integers) == 2 and before[0].dtype == np.int64
    for mine, theirs in zip(before, world.integers, strict=True):
        moved = np.linalg.norm((theirs - mine).astype(np.float64))
        assert 0.9 * world.plan.grid.steps_per_clip < moved <= world.plan.event().l2
    assert with_more == without


@pytest.mark.parametrize("more", [RECORDS[128], ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("exchange", [SIGN, MASKED], ids=["sign", "masked"])
def test_with_a_released_loss_one_record_moves_both_by_the_joint_clip(world, more, exchange):
    """Of what leaves only the noisy loss may differ: it is one value of the sum that bears the noise."""
    privacy = {**PRIVACY, "sampling_probability": 1.0, "loss_share": 0.5, "loss_cap": 2.0}
    reply, *without = world.run(RECORDS[:16], privacy=privacy, **exchange, **SGD)
    sums, gradients = world.sums, world.gradients
    replayed = {"replayed": gradients, "privacy": privacy, **exchange, **SGD}
    reply_more, *with_more = world.run([*RECORDS[:16], more], **replayed)
    joint = CLIP * 1.25**0.5
    assert len(sums) == 2 and len(reply.loss) == len(reply_more.loss) == 1
    for mine, theirs in zip(sums, world.sums, strict=True):
        assert np.linalg.norm(theirs - mine) <= joint * (1 + 1e-4)
        assert abs(theirs[-1] - mine[-1]) <= 0.5 * CLIP
        assert (
            np.linalg.norm(theirs - mine) > 0.9 * joint
        )  # a loss beyond the cap, a gradient beyond the clip
    assert with_more == without and replace(reply_more, loss=[]) == replace(reply, loss=[])
    assert reply_more.loss != reply.loss


SUMMED = {
    "federation": {"nodes": 3, "local_steps": 1, "optimiser": "sgd"},
    "exchange": {"up": {"error_feedback": False}, "secure": {"enabled": True, "bits": 16, "share": 0.6}},
}


def summed(organisation, monkeypatch, records, **privacy):
    """Reply, files and integers of a secure round without masks; a counter decides what is random."""
    from fedpeft.adapters import detach
    from fedpeft.privacy import csprng
    from fedpeft_clients.process_cache import PROCESS
    from fedpeft_clients.rounds import local_round
    from fedpeft_clients.rounds.handlers import train
    from fedpeft_clients.rounds.node_context import NodeContext

    settings = {**PRIVACY, "trust": "distributed", "noise_multiplier": 2.0, **privacy}
    home, coordinator = organisation(records=records, privacy=settings, **SUMMED)
    session = SimpleNamespace(task=SimpleNamespace(follows=0, scales=[]), check=lambda *_: None)
    sent, calls = [], itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(
            csprng.os, "urandom", lambda size: hashlib.sha256(str(next(calls)).encode()).digest()[:size]
        )
        patch.setattr(local_round, "session_of", lambda *_: session)
        patch.setattr(local_round, "hidden", lambda *given: sent.append(given[3]) or b"masked")
        node = NodeContext(home)
        reply, envelope = train(node, coordinator.first_task(expires=2e9, steps=1), b"")
        plan = node.plan.privacy
    files = sorted(str(path.relative_to(home.path)) for path in home.path.rglob("*") if path.is_file())
    PROCESS.clear()
    detach()
    shutil.rmtree(home.path)
    return (replace(reply, ledger=b""), envelope, files), sent[0], plan


@pytest.mark.parametrize("more", [RECORDS[128], ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_one_record_moves_a_secure_sum_by_its_sensitivity_and_changes_nothing_else(
    organisation, monkeypatch, more, rate
):
    """Equal words of rounding and noise: what is left is the rounded gradient of the one record."""
    several = RECORDS[:128] if rate < 1 else RECORDS[:16]
    without, before, plan = summed(organisation, monkeypatch, several, sampling_probability=rate)
    with_more, after, _ = summed(organisation, monkeypatch, [*several, more], sampling_probability=rate)
    assert with_more == without
    moved = np.linalg.norm(after - before)
    assert moved <= plan.event().l2
    assert rate < 1 or moved > 0.9 * plan.grid.steps_per_clip


def test_nodes_with_one_configured_seed_have_independent_noise(organisation):
    """The update is noise nearly alone; two nodes of one seed must not share it (bug 16)."""
    privacy = {**PRIVACY, "noise_multiplier": 1e4, "max_noise_to_signal": 1e9}
    changes = [signs(*organisation(name, privacy=privacy, **SIGN, **SGD)) for name in ("clinic", "bank")]
    agreement = float(np.mean(changes[0] == changes[1]))
    assert abs(agreement - 0.5) < 6 * 0.5 / changes[0].size ** 0.5


def signs(home, coordinator):
    """Signs of the update that a node sends in round 1."""
    from fedpeft.exchange import Context, Sign, open_envelope
    from fedpeft.trust import Verifier
    from fedpeft_clients.rounds.handlers import train
    from fedpeft_clients.rounds.node_context import NodeContext

    _, envelope = train(NodeContext(home), coordinator.first_task(), b"")
    node_context = NodeContext(home)
    context = Context(node_context.run, 1, home.name, node_context.digest_of(node_context.initial()), "up")
    verifier = Verifier(NodeContext(home).signer.public)
    return np.sign(open_envelope(envelope, node_context.attached.layout, Sign(), context, verifier).dense())
