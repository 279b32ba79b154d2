"""A classification head that is trained with the adapter: exchanged, protected, exported, merged.

huggingface/peft#602, #1412, #2085, huggingface/transformers#29056: heads that came back untrained.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.adapters import attach, detach, export, merge
from fedpeft.aggregation import mean_step
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.data import Example, collate
from fedpeft.errors import ConfigError
from fedpeft.exchange import Decoded
from fedpeft.runstore import RunStore
from fedpeft.training.dp.engine_selection import Engine, engine_of
from fedpeft.training.dp.per_example import clipped_sum
from fedpeft.training.loss import per_example_loss

from .trained_values import logits_of, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CLASSES = 2
IDS = torch.arange(3, 15)[None]
_logits, _moved = partial(logits_of, IDS), partial(moved, 0.1)
HEADS = {
    "llama": {"score.weight"},
    "gpt2-16": {"score.weight"},
    "roberta514": {
        f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("bias", "weight")
    },
    "bert": {
        f"{layer}.{kind}" for layer in ("bert.pooler.dense", "classifier") for kind in ("bias", "weight")
    },
}
METHODS = {"lora": "batched", "miss": "batched", "ia3": "loop"}


@pytest.fixture
def headed(inputs):
    """A base of the inputs as a classifier, its adapter and its head."""

    def made(name="llama", method="lora", **settings):
        chosen = {"model": str(inputs.base(name)), "device": "cpu", "task": "sequence-classification"}
        base = load_base(BaseConfig.model_validate(chosen | settings), CLASSES)
        return attach(base, AdapterConfig(method=method, rank=4, skip_layers=(), train_head=True), 3)

    yield made
    detach()


def _own(attached):
    return {name for name in attached.layout.names if attached.spec.parts.trains(name)}


def _examples():
    rng = np.random.default_rng(0)
    lengths = enumerate((5, 11, 7))
    return [Example(rng.integers(5, 100, n), np.ones(n, np.float32), row % CLASSES) for row, n in lengths]


@pytest.mark.parametrize("name", HEADS)
def test_the_head_starts_as_the_base_has_it_and_leaves_no_trace(inputs, headed, name):
    settings = {"model": str(inputs.base(name)), "device": "cpu", "task": "sequence-classification"}
    base = load_base(BaseConfig.model_validate(settings), CLASSES)
    modules, expected = dict(base.model.named_modules()), _logits(base.model)
    attached = headed(name)
    assert _own(attached) == HEADS[name]
    assert torch.allclose(_logits(attached.model), expected, atol=1e-6)
    training = [parameter for parameter in attached.model.parameters() if parameter.requires_grad]
    assert {id(p) for p in training} == {id(p) for p in attached.parameters.values()}
    attached.load(_moved(attached))
    assert not torch.allclose(_logits(attached.model), expected, atol=1e-3)
    detach()
    assert torch.equal(_logits(base.model), expected)
    assert dict(base.model.named_modules()) == modules


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_updates_is_the_mean_of_heads(headed, method):
    attached = headed(method=method)
    start, weights, heads, contributions = attached.initial(), (1.0, 2.0, 0.5), [], []
    for node, weight in enumerate(weights):
        end = _moved(attached, node)
        contributions.append((str(node), weight, Decoded(attached.layout, end - start)))
        heads.append(attached.layout.split(end)["score.weight"].astype(np.float64) * weight)
    attached.load((start + mean_step(start.size, contributions)).astype(np.float32))
    head = attached.parameters["score.weight"].detach().numpy()
    assert np.allclose(head, sum(heads) / sum(weights), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", HEADS)
def test_a_records_gradient_is_clipped_over_adapter_and_head_together(headed, name, method):
    attached = headed(name, method)
    attached.load(_moved(attached))
    batch = collate(_examples(), attached.base.pad_id)
    parameters = [attached.parameters[name] for name in attached.layout.names]
    rows = []
    for row in range(len(batch)):
        single = batch.part(row, row + 1)
        gradients = torch.autograd.grad(per_example_loss(attached.model, single).sum(), parameters)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]).double().numpy())
    norms = np.array([np.linalg.norm(row) for row in rows])
    clip = float(np.median(norms))
    expected = sum(row * min(1.0, clip / norm) for row, norm in zip(rows, norms, strict=True))
    chosen = engine_of(attached, longest=12)
    assert chosen.name == METHODS[method]
    for engine in (chosen, Engine("loop", "asked for", 12)):
        total, got = clipped_sum(attached, batch, clip, engine=engine)
        assert np.allclose(got, norms, rtol=1e-4)
        assert np.allclose(total, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", HEADS)
def test_plain_peft_loads_the_trained_head_and_it_is_merged(headed, tmp_path, name, method):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    attached = headed(name, method)
    attached.load(_moved(attached))
    expected, base = _logits(attached.model), attached.base
    export(attached, tmp_path / "a")
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "a", num_labels=CLASSES)
    plain.config.pad_token_id = base.pad_id
    assert torch.allclose(_logits(plain), expected, atol=2e-5)
    detach()
    settings = {"model": str(base.folder), "device": "cpu", "task": "sequence-classification"}
    merge(tmp_path / "a", tmp_path / "m", BaseConfig.model_validate(settings))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert torch.allclose(_logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_a_new_head_is_trained_in_float32_and_starts_alike_in_every_compute_type(headed, quantisation):
    start = headed().layout.split(headed().initial())["score.weight"]
    detach()
    attached = headed(dtype="bfloat16", quantisation=quantisation)
    assert np.array_equal(attached.layout.split(attached.initial())["score.weight"], start)
    assert all(parameter.dtype == torch.float32 for parameter in attached.parameters.values())
    per_example_loss(attached.model, collate(_examples(), attached.base.pad_id)).sum().backward()
    assert attached.parameters["score.weight"].grad.any()


EXACT = {
    "exchange__up__codec": "dense-fp32",
    "exchange__up__error_feedback": "false",
    "exchange__down__codec": "dense-fp32",
    "exchange__down__error_feedback": "false",
}
CLASSIFIER = {"base__task": "sequence-classification", "adapter__train_head": "true"}
PRIVATE = {"privacy__unit": "record", "privacy__epsilon": 8, "privacy__public_records": 16}


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_federation_trains_exports_and_names_its_head(fedpeft, settings, inputs, tmp_path, name, private):
    run = tmp_path / "run"
    more = PRIVATE | {"privacy__max_noise_to_signal": 1e9} if private else EXACT
    options = settings(base=name, federation__rounds=2, **CLASSIFIER, **more)
    done = fedpeft("simulate", "--out", run, *options)
    assert done.code == 0, done.err
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    card = (run / "adapter" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "num_labels=" in card
    assert saved == (["score"] if name == "llama" else ["classifier", "pooler"])
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (said,) = [event for event in events if event["event"] == "coverage"]
    assert (
        "updates of a head show the labels of records" in said["text"] and said["text"] in done.out + done.err
    )
    classes = len(json.loads(RunStore(run).labels.read_text()))
    chosen = {"model": str(inputs.base(name)), "device": "cpu", "task": "sequence-classification"}
    base = load_base(BaseConfig.model_validate(chosen), classes)
    start = attach(base, AdapterConfig(rank=4, skip_layers=(), train_head=True), 0)
    heads = {key: value for key, value in start.starts.items() if "weight" in key}
    detach()
    assert heads
    for key, value in heads.items():
        assert not np.allclose(tensors[f"base_model.model.{key}"].numpy(), value, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"adapter__train_head": "true"}, "set base.task = 'sequence-classification'"),
        (
            CLASSIFIER | EXACT | {"adapter__aggregation": "stack", "exchange__up__error_feedback": "false"},
            "adapter.aggregation = 'frozen_a'",
        ),
    ],
)
def test_a_head_that_cannot_be_trained_costs_one_line(fedpeft, settings, tmp_path, changes, line):
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(**changes))
    assert done.code == 2
    assert line in done.error
    assert not (tmp_path / "run").exists()


def test_a_language_model_has_no_head_to_train(inputs):
    base = load_base(BaseConfig(model=str(inputs.base("llama")), device="cpu"))
    with pytest.raises(ConfigError, match="has no classification head"):
        attach(base, AdapterConfig(train_head=True), 0)
