"""Experts that are fused into one tensor, adapted when asked: huggingface/peft#3009, #3554, #2864."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fedpeft.adapters import attach, detach, export, merge
from fedpeft.adapters.coverage import EXPERTS
from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.aggregation import mean_step
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.data import Example, collate
from fedpeft.errors import ConfigError
from fedpeft.exchange import Decoded
from fedpeft.training.dp.engine_selection import engine_of
from fedpeft.training.dp.per_example import clipped_sum
from fedpeft.training.loss import per_example_loss

from .trained_values import logits_of, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.arange(3, 15)[None]
_logits, _moved = partial(logits_of, IDS), partial(moved, 0.05)
SIZES = {
    "vocab_size": 102,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "Qwen3Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
        "head_dim": 8,
    },
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},  # stored input by output
    "Llama4Text": {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8},
    "GraniteMoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture
def expert(inputs, tmp_path):
    """A mixture of a family with an adapter on its experts."""

    def made(family="Qwen3Moe", skip=(), **settings):
        folder = tmp_path / family
        if not folder.exists():
            torch.manual_seed(0)
            config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes((inputs.base("llama") / name).read_bytes())
        base = load_base(BaseConfig.model_validate({"model": str(folder), "device": "cpu", **settings}))
        return attach(base, AdapterConfig(rank=4, skip_layers=skip, experts=True), 3)

    yield made
    detach()


def _changes(attached):
    """What the adapter adds to every expert's matrices."""
    from peft.tuners.lora.layer import ParamWrapper

    modules = {name: part for name, part in attached.model.named_modules() if isinstance(part, ParamWrapper)}
    return {name: part.get_delta_weight("default").detach().double() for name, part in modules.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_starts_as_it_was_gets_a_gradient_and_leaves_no_trace(expert, family):
    base = expert(family).base
    detach()
    modules, expected = dict(base.model.named_modules()), _logits(base.model)
    attached = expert(family)
    assert torch.equal(_logits(attached.model), expected)
    assert dict(attached.spec.coverage.left_out).get(EXPERTS) is None
    assert attached.spec.coverage.text.endswith(REVEALED["experts"])
    attached.load(_moved(attached))
    attached.model(input_ids=torch.arange(3, 100)[None], use_cache=False).logits.square().mean().backward()
    assert all(parameter.grad.any() for parameter in attached.parameters.values())
    assert sum(".experts." in name for name in attached.layout.names) == 4
    detach()
    assert torch.equal(_logits(base.model), expected)
    assert dict(base.model.named_modules()) == modules


def test_skipped_layers_keep_their_experts(expert):
    attached = expert(skip=(0,))
    assert {name.split(".")[2] for name, _ in attached.spec.parts.experts} == {"1"}
    assert dict(attached.spec.coverage.left_out)["in layer 0 (adapter.skip_layers)"] == 4 + 8


def test_the_mean_of_updates_is_the_mean_of_every_experts_change(expert):
    attached = expert()
    start, weights, mean, contributions = attached.initial(), (1.0, 2.0, 0.5), {}, []
    for node, weight in enumerate(weights):
        end = _moved(attached, node)
        attached.load(end)
        contributions.append((str(node), weight, Decoded(attached.layout, end - start)))
        for name, change in _changes(attached).items():
            mean[name] = mean.get(name, 0) + change * weight / sum(weights)
    attached.load((start + mean_step(start.size, contributions)).astype(np.float32))
    for name, change in _changes(attached).items():
        assert float((change - mean[name]).norm() / mean[name].norm()) < 1e-5


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_a_records_gradient_is_that_of_the_record_alone(expert, family):
    """A pass over a batch sends its tokens to experts together; the loop does not."""
    attached = expert(family)
    attached.load(_moved(attached))
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(5, 100, n), np.ones(n, np.float32)) for n in (5, 11, 7)]
    batch = collate(examples, attached.base.pad_id)
    parameters = [attached.parameters[name] for name in attached.layout.names]
    rows = []
    for row in range(len(batch)):
        loss = per_example_loss(attached.model, collate([examples[row]], attached.base.pad_id)).sum()
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]).double().numpy())
    norms = np.array([np.linalg.norm(row) for row in rows])
    clip = float(np.median(norms))
    expected = sum(row * min(1.0, clip / norm) for row, norm in zip(rows, norms, strict=True))
    assert engine_of(attached, longest=12).name == "loop"
    total, got = clipped_sum(attached, batch, clip)
    assert np.allclose(got, norms, rtol=1e-4)
    assert np.allclose(total, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_adapted_experts_and_they_are_merged(expert, tmp_path, family):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    attached = expert(family)
    attached.load(_moved(attached))
    expected, folder = _logits(attached.model), str(attached.base.folder)
    export(attached, tmp_path / "a")
    detach()
    assert torch.allclose(
        _logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")), expected, atol=2e-5
    )
    merge(tmp_path / "a", tmp_path / "m", BaseConfig(model=folder, device="cpu"))
    assert torch.allclose(_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "m")), expected, atol=1e-4)


def test_packed_experts_come_back(fedpeft, expert, tmp_path):
    attached = expert()
    attached.load(_moved(attached))
    export(attached, tmp_path / "a")
    detach()
    assert fedpeft("adapter", "pack", tmp_path / "a", "-o", tmp_path / "a.fpa").code == 0
    assert fedpeft("adapter", "unpack", tmp_path / "a.fpa", "-o", tmp_path / "b").code == 0
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert before.keys() == after.keys()
    assert all((after[name] - value).norm() < 0.3 * value.norm() for name, value in before.items())


@pytest.mark.parametrize(
    "settings", [{"quantisation": "nf4"}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}]
)
def test_experts_are_trained_in_float32_on_any_base(expert, settings):
    attached = expert(**settings)
    attached.load(_moved(attached))
    attached.model(input_ids=torch.arange(3, 100)[None], use_cache=False).logits.square().mean().backward()
    assert all(parameter.dtype == torch.float32 for parameter in attached.parameters.values())
    assert all(parameter.grad.any() for parameter in attached.parameters.values())


PRIVATE = {
    "privacy__unit": "record",
    "privacy__epsilon": 8,
    "privacy__public_records": 16,
    "privacy__max_noise_to_signal": 1e9,
}


EXACT = {
    "exchange__up__codec": "dense-fp32",
    "exchange__up__error_feedback": "false",
    "exchange__down__codec": "dense-fp32",
    "exchange__down__error_feedback": "false",
}


@pytest.mark.parametrize("more", [EXACT, PRIVATE], ids=["open", "private"])
def test_a_federation_trains_exports_and_evaluates_experts(fedpeft, settings, inputs, tmp_path, more):
    run = tmp_path / "run"
    options = settings(base="qwen3-moe", adapter__experts="true", **more)
    done = fedpeft("simulate", "--out", run, *options)
    assert done.code == 0, done.err
    assert f"left out: 1 in the output head; {REVEALED['experts']}" in done.out + done.err
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    moved = [name for name in tensors if "experts" in name and "lora_B" in name]
    assert len(moved) == 4
    assert all(tensors[name].any() for name in moved)
    assert len(json.loads((run / "adapter" / "adapter_config.json").read_text())["target_parameters"]) == 4
    assert fedpeft("adapter", "eval", run).code == 0


@pytest.mark.parametrize(
    ("base", "changes", "line"),
    [
        ("llama", {}, "has no experts that are fused"),
        ("qwen3-moe", {"adapter__method": "miss"}, "set adapter.method = 'lora'"),
        ("qwen3-moe", {"adapter__aggregation": "naive"}, "adapter.aggregation = 'frozen_a'"),
        ("qwen3-moe", {**PRIVATE, "run__engine": "batched"}, "run.engine = 'batched'"),
    ],
)
def test_experts_that_cannot_be_adapted_cost_one_line(fedpeft, settings, tmp_path, base, changes, line):
    options = settings(base=base, adapter__experts="true", **changes)
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code
    assert line in done.error


def test_a_base_without_experts_is_refused(inputs):
    base = load_base(BaseConfig(model=str(inputs.base("llama")), device="cpu"))
    with pytest.raises(ConfigError, match="no experts"):
        attach(base, AdapterConfig(experts=True), 0)
