"""The parts of sequence assembly against naive twins and closed forms."""

from itertools import combinations

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach
from fedpeft.config.models import AdapterConfig
from fedpeft_attacks.sequences import Bag, beam
from fedpeft_attacks.sequences.beam import Path, Search, bag_weights
from fedpeft_attacks.sequences.matched import Side, pulls_of, squared_pull
from fedpeft_attacks.sequences.probing import Probe
from fedpeft_attacks.sequences.rouge import common, pair_up, rouge_l
from fedpeft_attacks.sequences.spans import Spans, news
from fedpeft_attacks.views import Start
from fedpeft_attacks.work import Meter

pytestmark = pytest.mark.portable


@pytest.fixture
def probe(trained_base):
    attached = attach(trained_base, AdapterConfig(skip_layers=(), aggregation="naive", rank=4), seed=0)
    values = np.random.default_rng(0).normal(scale=0.02, size=attached.layout.size).astype(np.float32)
    return Probe.of(Start(attached, attached.get() + values))


def _naive(one, other):
    for length in range(min(len(one), len(other)), 0, -1):
        parts = {tuple(one[i] for i in places) for places in combinations(range(len(one)), length)}
        if any(
            tuple(other[i] for i in places) in parts for places in combinations(range(len(other)), length)
        ):
            return length
    return 0


def test_common_subsequence_is_the_naive_one():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = (rng.integers(4, size=rng.integers(8)).tolist() for _ in range(2))
        assert common(one, other) == _naive(one, other)


def test_rouge_is_one_for_the_same_and_symmetric():
    assert rouge_l([1, 2, 3], [1, 2, 3]) == 1.0
    assert rouge_l([], []) == 1.0
    assert rouge_l([1, 2], []) == 0.0
    assert rouge_l([1, 2, 3, 4], [2, 4]) == rouge_l([2, 4], [1, 2, 3, 4]) == pytest.approx(2 * 2 / 6)


def test_each_guess_is_paired_once():
    assert pair_up([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]) == [1.0, 0.0]
    assert pair_up([[7, 8], [1, 2, 3]], [[1, 2, 3], [7, 9]]) == [1.0, 0.5]
    assert pair_up([], [[1]]) == [0.0]


def test_news_is_what_least_squares_leaves():
    rng = np.random.default_rng(1)
    past, new = rng.normal(size=(2, 5, 12)), rng.normal(size=(2, 3, 12))
    found = news(torch.from_numpy(past), torch.from_numpy(new)).numpy()
    for b in range(2):
        fitted = past[b].T @ np.linalg.lstsq(past[b].T, new[b].T, rcond=None)[0]
        assert found[b] == pytest.approx(((new[b].T - fitted) ** 2).sum(axis=0), rel=1e-4)


def test_slopes_are_the_derivative_of_the_loss(probe, sentences):
    """The slope of a token's loss along a direction is its gradient's inner product with it."""
    row = sentences(1, 4)[0][:8]
    direction = np.random.default_rng(2).normal(size=probe.state.shape).astype(np.float32)
    ids = torch.tensor([row])
    shares, slopes = probe.logits(ids)[0].softmax(-1), probe.slopes(direction, lambda: probe.logits(ids))[0]
    at = 5
    found = float((shares[at] * slopes[at]).sum() - slopes[at, row[at + 1]])
    weights = [0.0] * (len(row) - 1)
    weights[at] = 1.0
    assert found == pytest.approx(float(probe.gradient([row], [weights]) @ direction), rel=2e-2)


def test_a_batch_gradient_is_the_sum_over_predicted_tokens(probe, sentences):
    """The causal decomposition that the matched filter stands on: loss t depends on the prefix alone."""
    row = sentences(1, 4)[0][:8]
    parts = []
    for at in range(len(row) - 1):
        weights = [0.0] * at + [1.0]
        parts.append(probe.gradient([row[: at + 2]], [weights]))
    assert np.allclose(np.mean(parts, axis=0), probe.gradient([row]), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_looking_ahead_reads_what_a_whole_pass_reads(probe, sentences, shared):
    row, proposals = sentences(1, 4)[0][:6], torch.tensor([[5, 9, 30]])
    names, ids = [group[0] for group in probe.groups], torch.tensor([row])
    vars(probe)["takes_masks"] = shared
    read = probe.read(ids, names)
    new = probe.ahead(read, proposals, names)
    del vars(probe)["takes_masks"]
    assert torch.allclose(read.logits, probe.logits(ids)[:, -1], atol=1e-4)
    assert torch.allclose(read.logits, probe.last_logits(ids), atol=1e-4)
    for place, token in enumerate(proposals[0].tolist()):
        _, seen = probe.inputs(torch.tensor([[*row, token]]), names)
        for name in names:
            assert torch.allclose(new[name][0, place], seen[name][0, -1], atol=1e-4)
            assert torch.allclose(read.inputs[name][0], seen[name][0, :-1], atol=1e-4)


def test_proposals_share_a_memory_only_where_the_model_heeds_their_mask(probe, monkeypatch):
    assert probe.takes_masks
    del vars(probe)["takes_masks"]
    onward = type(probe)._onward
    monkeypatch.setattr(type(probe), "_onward", lambda *given, **_: onward(*given))
    assert not probe.takes_masks
    del vars(probe)["takes_masks"]


def test_modules_that_read_the_same_are_one_group(probe):
    assert len(probe.groups) == 4 * 2
    assert [len(group) for group in probe.groups[:2]] == [3, 1]


def test_a_bag_weights_tokens_only_where_it_claims():
    assert not bag_weights(Bag((3, 1)), 5).any()
    assert bag_weights(Bag((3, 1), 1, 2.0), 4).tolist() == [-2.0, -2.0, -2.0, 0.0]


@pytest.mark.parametrize(("size", "count"), [(6, 40), (40, 6)])
def test_whitening_is_the_damped_inverse_of_the_moments(size, count):
    vectors = 1e-4 * np.random.default_rng(2).normal(size=(size, count)).astype(np.float32)
    moment = vectors.astype(float) @ vectors.T
    naive = np.linalg.inv(moment / (np.trace(moment) / size) + 0.03 * np.eye(size))
    assert np.allclose(Side.of(vectors) @ np.eye(size), naive, atol=1e-3 * np.abs(naive).max())


def test_the_pull_of_one_token_is_that_of_all(probe, sentences):
    ids = torch.tensor(sentences(2, 5))
    logits, targets = probe.logits(ids)[:, :-1], ids[:, 1:]
    every = squared_pull(probe, logits).gather(2, targets[..., None])[..., 0]
    assert torch.allclose(pulls_of(probe, logits, targets), every, rtol=1e-3)


def test_looking_at_fewer_paths_together_changes_nothing(probe, sentences, monkeypatch):
    values = probe.gradient(sentences(1, 5))
    spans, bag = Spans.of(values, probe), torch.zeros(1024)
    search = Search(probe, None, spans, bag, 3, 8, 12, bag)
    paths = [Path((1, token), 0.0) for token in range(3, 9)]
    whole = search._step(paths, Meter())
    monkeypatch.setattr(beam, "_FLOATS", 1)
    parts = search._step(paths, Meter())
    assert [path.tokens for path in parts] == [path.tokens for path in whole]


def test_the_safety_stop_is_looked_at_inside_a_step(probe, sentences):
    values = probe.gradient(sentences(1, 5))
    search = Search(probe, None, Spans.of(values, probe), torch.zeros(1024), 3, 8, 12, torch.zeros(1024))
    meter = Meter(seconds=0.0)
    paths = [Path((1, token), 0.0) for token in range(3, 9)]
    assert search._step(paths, meter) == paths
    assert meter.work.is_stopped
