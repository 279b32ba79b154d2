from dataclasses import replace

import numpy as np
import pytest
import torch

from fedpeft.adapters import CardFacts, attach, detach, export, merge, write_card
from fedpeft.adapters.methods.ia3 import feedforward_targets
from fedpeft.adapters.methods.miss import shard_sum
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange import Decoded
from fedpeft.plugins import ADAPTER_METHODS
from fedpeft.rng import stream

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
IDS = torch.arange(3, 19)[None]
FROZEN = AdapterConfig(skip_layers=(), rank=4)


@torch.no_grad()
def _logits(model):
    return model(input_ids=IDS).logits


def _noise(layout, seed=0):
    return 0.3 * stream(seed, 0, "", "noise").standard_normal(layout.size).astype(np.float32)


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
def test_the_base_is_bit_identical_after_every_adapter(tiny_base, quantisation):
    base = tiny_base("llama", quantisation=quantisation)
    modules = dict(base.model.named_modules())
    tensors = {name: (id(p), p.data.clone()) for name, p in base.model.named_parameters()}
    before, state = _logits(base.model), torch.random.get_rng_state()
    for key in ADAPTER_METHODS.shipped:
        method, _, aggregation = key.partition("/")
        attached = attach(
            base,
            AdapterConfig(skip_layers=(), method=method, aggregation=aggregation or "frozen_a", rank=4),
            0,
        )
        attached.load(attached.get() + _noise(attached.layout))
        assert not torch.equal(_logits(attached.model), before)
        attached.model(input_ids=IDS).logits.sum().backward()
    detach()
    assert torch.equal(_logits(base.model), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert dict(base.model.named_modules()) == modules
    assert not hasattr(base.model, "peft_config")
    for name, parameter in base.model.named_parameters():
        assert id(parameter) == tensors[name][0] and torch.equal(parameter.data, tensors[name][1])
        assert not parameter.requires_grad and parameter.grad is None


def test_one_adapter_is_kept_and_reset(tiny_llama):
    first = attach(tiny_llama, FROZEN, seed=1)
    initial = first.get()
    first.load(initial + 1)
    assert attach(tiny_llama, FROZEN, seed=1) is first and np.array_equal(first.get(), initial)
    second = attach(tiny_llama, AdapterConfig(skip_layers=(), rank=2), seed=1)
    assert second is not first and second.base.model is first.base.model
    assert not np.array_equal(_frozen(attach(tiny_llama, FROZEN, 1)), _frozen(attach(tiny_llama, FROZEN, 2)))


def _frozen(attached):
    return np.concatenate(
        [attached.frozen[name].detach().numpy().ravel() for name in sorted(attached.frozen)]
    )


def test_the_start_depends_on_the_seed_alone(tiny_llama):
    torch.manual_seed(1)
    first = _frozen(attach(tiny_llama, FROZEN, seed=5))
    detach()
    torch.manual_seed(2)
    assert np.array_equal(_frozen(attach(tiny_llama, FROZEN, seed=5)), first)
    width = 32
    a = attach(tiny_llama, FROZEN, seed=5).frozen["model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert a.abs().max() <= width**-0.5 and a.std() == pytest.approx((3 * width) ** -0.5, rel=0.2)


def test_layout_is_sorted_short_and_what_is_trained(tiny_llama):
    layout = attach(tiny_llama, FROZEN, 0).layout
    assert len(layout.names) == 14 and list(layout.names) == sorted(layout.names)
    assert layout.names[0] == "model.layers.0.mlp.down_proj.lora_B.weight"
    assert layout.shapes[0] == (32, 4)


def test_load_and_get_are_inverse_and_bounded(tiny_adapter):
    values = _noise(tiny_adapter.layout)
    tiny_adapter.load(values)
    assert np.array_equal(tiny_adapter.get(), values)
    with pytest.raises(ExchangeError, match="expected"):
        tiny_adapter.load(values[:-1])


def test_targets(tiny_llama):
    attached = attach(tiny_llama, AdapterConfig(target_modules=("q_proj", "v_proj"), skip_layers=(0,)), 0)
    assert attached.spec.targets == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    ia3 = attach(tiny_llama, AdapterConfig(skip_layers=(), method="ia3"), 0)
    assert {name.rsplit(".", 1)[-1] for name in ia3.spec.targets} == {"k_proj", "v_proj", "down_proj"}
    assert {name.rsplit(".", 1)[-1] for name in feedforward_targets(ia3.spec)} == {"down_proj"}
    with pytest.raises(ConfigError, match=r"'q_prj' fits no linear module; nearest: q_proj"):
        attach(tiny_llama, AdapterConfig(skip_layers=(), target_modules=("q_prj",)), 0)
    with pytest.raises(ConfigError, match="is in the output head and carries no adapter"):
        attach(tiny_llama, AdapterConfig(skip_layers=(), target_modules=("lm_head",)), 0)
    with pytest.raises(ConfigError, match="leave out fewer layers"):
        attach(tiny_llama, AdapterConfig(skip_layers=(0, 1)), 0)
    with pytest.raises(ConfigError, match=r"adapter\.ranks needs aggregation"):
        attach(tiny_llama, AdapterConfig(skip_layers=(), ranks={"a": 2}), 0)
    with pytest.raises(ConfigError, match="miss needs at most that"):
        attach(tiny_llama, AdapterConfig(skip_layers=(), method="miss", rank=40), 0)


@pytest.mark.parametrize("aggregation", ["stack", "reproject"])
def test_nodes_of_another_rank_start_from_the_same_function(tiny_llama, aggregation):
    cfg = AdapterConfig(skip_layers=(), aggregation=aggregation, rank=4, ranks={"small": 2, "big": 6})
    law = attach(tiny_llama, cfg, 0).aggregator
    state = law.initial()
    layouts = [(node, law.layout(node)) for node in ("big", "small")]
    deltas = [(node, 1.0, Decoded(at, _noise(at, seed))) for seed, (node, at) in enumerate(layouts)]
    state = law.step(state, 1, deltas)
    shown = attach(tiny_llama, cfg, 0)
    shown.begin(state)
    expected = _logits(shown.model)
    for node, rank in (("small", 2), ("big", 6)):
        attached = attach(tiny_llama, cfg, 0, node)
        start = attached.begin(state, 2, node)
        assert attached.rank == rank and attached.layout.digest == law.layout(node).digest
        assert np.array_equal(start, law.start_values(state, 2, node))
        if aggregation == "stack" or rank > 4:
            assert torch.allclose(_logits(attached.model), expected, atol=1e-4)
        trained = [name for name, p in attached.model.named_parameters() if p.requires_grad]
        assert trained and not any(".global." in name for name in trained)


@pytest.mark.parametrize("rank", [4, 5])
def test_miss_is_pefts_miss(tiny_llama, tmp_path, rank):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    attached = attach(tiny_llama, AdapterConfig(skip_layers=(), method="miss", rank=rank), 0)
    attached.load(_noise(attached.layout))
    export(attached, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama.folder), tmp_path)
    assert plain.peft_config["default"].peft_type == "MISS"
    assert torch.allclose(_logits(plain.eval()), _logits(attached.model), atol=2e-5)
    assert shard_sum((2, 5)).tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]


@pytest.mark.parametrize("key", ["lora/frozen_a", "lora/stack", "miss", "ia3"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral", "gemma", "phi"])
def test_architectures(tiny_base, tmp_path, architecture, key):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_base(architecture)
    before = _logits(base.model)
    method, _, aggregation = key.partition("/")
    attached = attach(
        base, AdapterConfig(skip_layers=(), method=method, aggregation=aggregation or "frozen_a", rank=4), 0
    )
    assert torch.allclose(_logits(attached.model), before, atol=1e-5)
    attached.load(attached.get() + _noise(attached.layout))
    attached.model(input_ids=IDS).logits.logsumexp(-1).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in attached.parameters.values())
    state = None
    if (law := attached.aggregator) is not None:
        state = law.step(law.initial(), 1, [("a", 1.0, Decoded(law.layout("a"), _noise(law.layout("a"))))])
        attached.begin(state)
    expected = _logits(attached.model)
    export(attached, tmp_path / "a", state)
    detach()
    assert torch.equal(_logits(base.model), before)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), tmp_path / "a")
    assert torch.allclose(_logits(plain.eval()), expected, atol=1e-4)


@pytest.mark.parametrize("aggregation", ["frozen_a", "stack"])
def test_adapters_stay_float32_on_a_bfloat16_base(tiny_base, tmp_path, aggregation):
    base = tiny_base("llama", dtype="bfloat16")
    assert base.dtype == "bfloat16" and base.model.lm_head.weight.dtype == torch.bfloat16
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4, aggregation=aggregation), 0)
    state = None
    if (law := attached.aggregator) is not None:
        state = law.step(law.initial(), 1, [("a", 1.0, Decoded(law.layout("a"), _noise(law.layout("a"))))])
        attached.begin(state)
    held = [p for name, p in attached.model.named_parameters() if "lora_" in name]
    assert all(p.dtype == torch.float32 for p in held)
    assert len(held) == (56 if aggregation == "stack" else 28)
    export(attached, tmp_path, state)


def test_quantised_gpt2(tiny_base):
    base = tiny_base("gpt2", quantisation="nf4")
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), 0)
    attached.load(_noise(attached.layout))
    attached.model(input_ids=IDS).logits.sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in attached.parameters.values())


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_classification_adapters_carry_the_head(tiny_base, tmp_path, architecture):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = tiny_base(architecture, num_labels=3, task="sequence-classification")
    attached = attach(base, FROZEN, 0)
    assert not any("score" in name or "classifier" in name for name in attached.spec.targets)
    attached.load(_noise(attached.layout))
    expected = _logits(attached.model)
    export(attached, tmp_path / "a")
    model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=3)
    model.config.pad_token_id = 0
    plain = PeftModel.from_pretrained(model, tmp_path / "a")
    assert torch.allclose(_logits(plain.eval()), expected, atol=2e-5)
    cfg = BaseConfig(model=str(base.folder), device="cpu", task="sequence-classification")
    merge(tmp_path / "a", tmp_path / "m", cfg)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert torch.allclose(_logits(merged.eval()), expected, atol=1e-4)


def test_gradients_are_the_same_with_checkpointing(tiny_base):
    gradients = []
    for checkpointing in (False, True):
        base = tiny_base("llama", gradient_checkpointing=checkpointing)
        attached = attach(base, FROZEN, 0)
        attached.model(input_ids=IDS).logits.logsumexp(-1).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in attached.parameters.values()]))
    assert torch.allclose(*gradients, atol=1e-7)


def test_merge_refuses_what_it_cannot_do(tiny_llama, tmp_path):
    cfg = BaseConfig(model=str(tiny_llama.folder), device="cpu")
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        merge(tmp_path, tmp_path / "out", cfg)
    export(attach(tiny_llama, FROZEN, 0), tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        merge(tmp_path / "a", tmp_path / "full", cfg)


def test_an_adapter_of_another_base_is_refused(tiny_base, tmp_path):
    base = tiny_base("llama")
    export(attach(base, FROZEN, 0), tmp_path / "a")
    other = BaseConfig(model=str(tiny_base("gpt2").folder), device="cpu")
    with pytest.raises(ConfigError, match="does not fit this base"):
        merge(tmp_path / "a", tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


def test_the_card_states_the_facts(tmp_path):
    facts = CardFacts(
        name="Triage",
        base="org/model",
        base_sha256="ab" * 32,
        quantisation="nf4",
        method="lora/frozen_a",
        trainable=1792,
        data="Four organisations, 200 letters each.",
        privacy="No differential privacy: nothing is guaranteed.",
        nodes=4,
        rounds=10,
        bytes_up=1000,
        bytes_down=500,
        dense_bytes=90000,
        metrics={"loss": 1.25},
    )
    text = write_card(tmp_path, facts).read_text()
    assert text.startswith("---\nbase_model: org/model\nlibrary_name: peft\n")
    wanted = [
        "ab" * 32,
        "Four organisations, 200",
        "nothing is guaranteed",
        "| 60.0 |",
        "1,792",
        "| loss | 1.25 |",
    ]
    for fact in wanted:
        assert fact in text.replace("| ratio ", "")
    assert "What an attacker could read" not in text
    assert 'AutoModelForCausalLM.from_pretrained("the base named above")' in text
    text = write_card(tmp_path, replace(facts, classes=3)).read_text()
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("this folder", num_labels=3)' in text
