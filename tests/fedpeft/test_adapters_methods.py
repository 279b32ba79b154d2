"""One test per promise; every method of the registry goes through each of them."""

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach, export, merge
from fedpeft.adapters.attach import linear_modules_under
from fedpeft.aggregation import mean_step
from fedpeft.config.models import AdapterConfig, BaseConfig, DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.exchange import Decoded
from fedpeft.plugins import ADAPTER_METHODS
from fedpeft.rng import stream

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
METHOD_KEYS = sorted(ADAPTER_METHODS.shipped)
NODES = ("a", "b", "c", "d")
WEIGHTS = (1.0, 2.0, 1.0, 0.5)


def settings(key: str, **more) -> AdapterConfig:
    method, _, aggregation = key.partition("/")
    return AdapterConfig(skip_layers=(), method=method, aggregation=aggregation or "frozen_a", rank=4, **more)


def ids(base, seed=0):
    return torch.from_numpy(stream(seed, 0, "", "ids").integers(3, base.model.config.vocab_size, (3, 12)))


@torch.no_grad()
def logits(model, tokens):
    return model.eval()(input_ids=tokens).logits


@torch.no_grad()
def effective_weights(attached):
    """Weight and bias of every adapted module, measured by sending unit vectors through it."""
    found = {}
    for name, module in linear_modules_under(attached.model).items():
        width = module.in_features
        bias = module(torch.zeros(1, width))
        found[name] = torch.cat([module(torch.eye(width)) - bias, bias]).double().numpy()
    return found


def trained(attached, start, node):
    """Values after some made-up training from ``start``."""
    return start + 0.3 * stream(0, 1, node, "made-up training").standard_normal(start.shape).astype(
        np.float32
    )


def aggregate(attached):
    """The mean of four nodes' effective weights, and the effective weights of their aggregate."""
    law = attached.aggregator
    state = attached.initial() if law is None else law.initial()
    mean, contributions = {}, []
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        start = attached.begin(state, 1, node)
        end = trained(attached, start, node)
        attached.load(end)
        contributions.append((node, weight, Decoded(attached.layout, end - start)))
        for name, value in effective_weights(attached).items():
            mean[name] = mean.get(name, 0) + value * weight / sum(WEIGHTS)
    after = state + mean_step(state.size, contributions) if law is None else law.step(state, 1, contributions)
    attached.begin(after if law is not None else after.astype(np.float32))
    return mean, effective_weights(attached)


@pytest.mark.parametrize("key", METHOD_KEYS)
def test_linear_trait_is_what_is_measured(tiny_llama, key):
    attached = attach(tiny_llama, settings(key), seed=3)
    attached.load(attached.initial())
    before = effective_weights(attached)
    mean, got = aggregate(attached)
    error = np.sqrt(sum(np.sum((got[n] - mean[n]) ** 2) for n in mean))
    change = np.sqrt(sum(np.sum((mean[n] - before[n]) ** 2) for n in mean))
    if ADAPTER_METHODS[key].traits.linear:
        assert error / change < 1e-5
    else:
        assert error / change > 0.05


@pytest.mark.parametrize("key", METHOD_KEYS)
def test_only_the_declared_tensors_train_and_the_start_is_the_base(tiny_llama, key):
    tokens = ids(tiny_llama)
    expected = logits(tiny_llama.model, tokens)
    attached = attach(tiny_llama, settings(key), seed=3)
    assert torch.allclose(logits(attached.model, tokens), expected, atol=1e-5)
    training = [p for p in attached.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in training) == attached.layout.size
    assert all(p.dtype == torch.float32 for p in training)
    assert {id(p) for p in training} == {id(p) for p in attached.parameters.values()}
    embeddings = {
        id(p)
        for m in (tiny_llama.model.get_input_embeddings(), tiny_llama.model.lm_head)
        for p in m.parameters()
    }
    assert attached.method.traits.trains_inputs == bool(embeddings & {id(p) for p in training})
    logits_with_gradient = attached.model(input_ids=tokens).logits
    logits_with_gradient.pow(2).mean().backward()
    assert any(p.grad.abs().sum() > 0 for p in training)


@pytest.mark.parametrize("key", METHOD_KEYS)
def test_per_example_gradients_equal_one_backward_each(tiny_llama, key):
    from fedpeft.training.dp.per_example import clipped_sum, engine_of
    from fedpeft.training.loss import per_example_loss

    attached = attach(tiny_llama, settings(key), seed=3)
    attached.load(trained(attached, attached.get(), "a"))
    records = [Record("the patient asked", "yes"), Record("a letter", "no green"), Record("seven", "blue")]
    batch = collate(tokenise(records, tiny_llama.tokenizer, DataConfig()), tiny_llama.pad_id)
    rows = []
    for row in range(3):
        attached.model.zero_grad()
        per_example_loss(attached.model, batch.part(row, row + 1)).sum().backward()
        rows.append(
            np.concatenate([p.grad.numpy().ravel() for p in attached.parameters.values()]).astype(np.float64)
        )
        attached.model.zero_grad()
    norms = np.array([np.linalg.norm(row) for row in rows])
    clip = float(np.median(norms))
    expected = sum(row * min(1.0, clip / norm) for row, norm in zip(rows, norms, strict=True))
    total, got = clipped_sum(attached, batch, clip)
    assert np.allclose(got, norms, rtol=1e-4)
    assert np.allclose(total, expected, atol=1e-4 * np.abs(expected).max())
    assert engine_of(attached).name == attached.method.traits.dp


def _exported(attached, folder, as_lora=False):
    """Give the adapter trained values, export it, and return the logits it must have."""
    law = attached.aggregator
    if law is None:
        attached.load(trained(attached, attached.get(), "a"))
        export(attached, folder, as_lora=as_lora)
    else:
        state = law.initial()
        for round in (1, 2):
            starts = {node: law.start_values(state, round, node) for node in NODES[:2]}
            deltas = [
                (n, 1.0, Decoded(law.layout(n), trained(attached, start, f"{n}{round}") - start))
                for n, start in starts.items()
            ]
            state = law.step(state, round, deltas)
        attached.begin(state)
        export(attached, folder, state=state)
    return logits(attached.model, ids(attached.base))


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
@pytest.mark.parametrize("key", METHOD_KEYS)
def test_exported_folder_loads_in_plain_peft_and_merges(tiny_base, tmp_path, key, quantisation):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedpeft.adapters import detach

    base = tiny_base("llama", quantisation=quantisation)
    untouched = logits(base.model, ids(base))
    folder = tmp_path / "adapter"
    expected = _exported(attach(base, settings(key), seed=3), folder)
    assert not torch.allclose(expected, untouched, atol=1e-2)
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]

    detach()
    assert torch.equal(logits(base.model, ids(base)), untouched)
    if quantisation == "none":
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), folder)
        assert torch.allclose(logits(plain, ids(base)), expected, atol=2e-5)

    merge(
        folder,
        tmp_path / "merged",
        BaseConfig(model=str(base.folder), device="cpu", quantisation=quantisation),
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, ids(base)), expected, atol=1e-4)


@pytest.mark.parametrize("key", [key for key in METHOD_KEYS if ADAPTER_METHODS[key].traits.exports_lora])
def test_what_exports_lora_is_lora(tiny_llama, tmp_path, key):
    import json

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = _exported(attach(tiny_llama, settings(key), seed=3), tmp_path / "a", as_lora=True)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama.folder), tmp_path / "a")
    assert torch.allclose(logits(plain, ids(tiny_llama)), expected, atol=2e-5)


@pytest.mark.parametrize("key", METHOD_KEYS)
def test_the_same_adapter_gives_the_same_bytes(tiny_llama, tmp_path, key):
    for name in ("x", "y"):
        _exported(attach(tiny_llama, settings(key), seed=3), tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()
