"""``fedpeft bench audit broadcast``: neurons that open for one token, what they show, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach
from fedpeft.aggregation.drift_bound import DriftBound
from fedpeft.config import build_config
from fedpeft.config.models import AdapterConfig
from fedpeft.run_plan import RunPlan
from fedpeft_bench.audit import broadcast
from fedpeft_bench.audit.memory_neurons import memory_neurons

LAYER = 1


@pytest.fixture
def world(tiny_llama):
    """An adapter as wide as the base, neurons for the tokens of a made-up text, and the text."""
    width = tiny_llama.model.config.hidden_size
    attached = attach(tiny_llama, AdapterConfig(skip_layers=(), rank=width), seed=0)
    vocabulary = tiny_llama.model.get_input_embeddings().weight.shape[0]
    texts = [np.random.default_rng(n).integers(4, min(vocabulary, 24), 12) for n in range(60)]
    return attached, texts, memory_neurons(attached, texts, (LAYER,), tail=1)


def gates(attached, state, text):
    """What enters the nonlinearity of a layer's neurons, shape ``(tokens, neurons)``."""
    attached.load(state)
    name = f"layers.{LAYER}.mlp.gate_proj"
    module = next(module for key, module in attached.model.named_modules() if key.endswith(name))
    seen = []
    hook = module.register_forward_hook(lambda *call: seen.append(call[2].detach()[0]))
    with torch.no_grad():
        attached.model(torch.as_tensor(text)[None])
    hook.remove()
    return seen[0].numpy()


def test_a_neuron_opens_for_its_token_and_hardly_for_others(world):
    attached, texts, neurons = world
    opened = [gates(attached, neurons.state, text)[:, : len(neurons.tokens)] > 0 for text in texts[:20]]
    own = [open_[1:-1] for open_ in opened]
    mine = [np.asarray(text[1:-1])[:, None] == np.array(neurons.tokens) for text in texts[:20]]
    right = np.concatenate([o[m] for o, m in zip(own, mine, strict=True)])
    wrong = np.concatenate([o[~m] for o, m in zip(own, mine, strict=True)])
    assert right.mean() >= 3 * wrong.mean() and wrong.mean() <= 0.05


def test_rows_that_bear_their_own_token_score_high(world):
    """Signs are enough, as AdamW and codecs leave them; rows that did not move score nothing."""
    attached, _, neurons = world
    (sketch,) = neurons.sketches
    rng, count = np.random.default_rng(0), len(neurons.tokens)
    parts = {name: np.zeros_like(part) for name, part in attached.layout.split(neurons.state).items()}
    rows = parts[sketch.tensor][:count]
    rows[: count // 2] = 1e-3 * np.sign(sketch.typical.numpy())[: count // 2]
    rows[count // 2 : -1] = 1e-3 * rng.choice((-1.0, 1.0), rows[count // 2 : -1].shape)
    scores = neurons.scores(attached.layout.flatten(parts))
    assert scores[: count // 2].min() > 1.5 > scores[count // 2 :].mean() + 1 and scores[-1] == 0


def test_a_node_refuses_the_neurons_by_the_terms_of_a_careful_run(world):
    attached, _, neurons = world
    federation = {"nodes": 4, **broadcast.CAREFUL}
    plan = RunPlan.from_config(build_config({"federation": federation}), attached.layout.size)
    bound = DriftBound.of(plan, attached.initial())
    for round in (2, 12):
        assert bound.excess(round, neurons.state)
        edge = broadcast._at_edge(SimpleNamespace(attached=attached, neurons=neurons), bound, round)
        assert not bound.excess(round, edge) and not bound.excess(round, bound.within(round, neurons.state))
        assert np.abs(edge - bound.start).max() == pytest.approx(bound.drifts[round - 1].peak)


def test_a_record_is_read_where_half_of_its_tokens_are_named():
    tokens = tuple(range(200))
    scores = np.zeros(200)
    scores[[1, 2, 3, 50]] = 9.0
    scores[150], scores[160] = 5.0, 4.0  # one in a hundred of the absent ones may be named
    neurons = SimpleNamespace(tokens=tokens, scores=lambda update: scores)
    records = [SimpleNamespace(ids=np.array(ids)) for ids in ([1, 2, 3, 90], [50, 60, 61], [150, 7])]
    read, named, control = broadcast._judged(neurons, np.zeros(1), records[:2], records[2:])
    assert (read, named, control) == (0.5, 4 / 7, 0.5)
    row = broadcast.Row("s", "dense", 1, "", read, named, control, 0.5)
    assert broadcast._cells(row) == ["s", "dense", "1", "no check", "0.500", "0.571", "0.500", "0.5"]
