"""Every run says how much of its base carries an adapter, and what is left out."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fedpeft.adapters import attach, detach
from fedpeft.adapters.coverage import BLOCKS, EXPERTS, UNCHOSEN
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.errors import ConfigError

SIZES = {
    "vocab_size": 102,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEAD = "in the output head"


@pytest.fixture
def base_of(inputs, tmp_path):
    """A base of a configuration of transformers, with the tokenizer of the inputs."""

    def made(model):
        model.save_pretrained(tmp_path / "made")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "made" / name).write_bytes((inputs.base("llama") / name).read_bytes())
        return load_base(BaseConfig(model=str(tmp_path / "made"), device="cpu"))

    torch.manual_seed(0)
    yield made
    detach()


def _field_base(inputs, name):
    return load_base(BaseConfig(model=str(inputs.base(name)), device="cpu"))


def test_experts_that_are_left_out_are_counted_by_name(fedpeft, settings, tmp_path):
    """huggingface/peft#3009, #3554: "all linear" adapted attention alone and nobody was told."""
    run = tmp_path / "run"
    done = fedpeft("simulate", "--out", run, *settings(base="qwen3-moe"))
    assert done.code == 0
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (said,) = [event for event in events if event["event"] == "coverage"]
    assert said["text"].startswith("adapts 8 of 25 weight matrices, 24.2 % of the parameters; left out: ")
    assert said["left_out"] == {HEAD: 1, EXPERTS: 16}
    assert said["text"] in done.out + done.err
    stored = json.loads((run / "run.json").read_text())["adapter"]["coverage"]
    assert stored == {key: said[key] for key in ("adapted", "matrices", "share", "left_out", "notes")}


def test_a_run_that_is_continued_says_it_once(fedpeft, settings, tmp_path):
    run = tmp_path / "run"
    assert fedpeft("simulate", "--quiet", "--out", run, *settings()).code == 0
    (run / "run.json").unlink()
    assert fedpeft("simulate", "--quiet", "--out", run, "--resume").code == 0
    assert (run / "metrics.jsonl").read_text().count('"coverage"') == 1


@pytest.mark.parametrize(("skipped", "names"), [((), "01"), ((0,), "1"), ((1,), "0")])
def test_only_the_text_stack_of_a_multimodal_base_is_adapted(inputs, skipped, names):
    """2U1/Qwen-VL-Series-Finetune#193, huggingface/trl#5032: text never trains a vision tower."""
    spec = attach(_field_base(inputs, "gemma3-mm"), AdapterConfig(skip_layers=skipped), 0).spec
    expected = {f"model.language_model.layers.{layer}" for layer in names}
    assert {".".join(name.split(".")[:4]) for name in spec.targets} == expected
    assert len(spec.targets) == 7 * len(names)
    assert dict(spec.coverage.left_out)["outside the text stack (model.vision_tower)"] == 9
    detach()


def test_all_that_a_multimodal_base_exchanges_moves(fedpeft, settings, tmp_path):
    run = tmp_path / "run"
    options = settings(
        base="gemma3-mm", exchange__up__codec="dense-fp32", exchange__up__error_feedback="false"
    )
    assert fedpeft("simulate", "--quiet", "--out", run, *options).code == 0
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in tensors.values())


@pytest.mark.parametrize("method", ["lora", "miss", "ia3"])
def test_mamba_gets_what_peft_accepts_and_kernels_do_not_read_past(inputs, method):
    """huggingface/peft#2556: a fused kernel takes the weight of ``out_proj`` and passes its adapter by."""
    config = AdapterConfig(method=method, skip_layers=(), rank=4)
    spec = attach(_field_base(inputs, "mamba"), config, 0).spec
    assert {name.rpartition(".")[2] for name in spec.targets} <= {"in_proj", "x_proj"}
    detach()


def test_a_mamba_run_ends_and_a_layer_that_is_read_past_is_refused_by_name(fedpeft, settings, tmp_path):
    assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(base="mamba")).code == 0
    options = settings(base="mamba", adapter__target_modules="out_proj")
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "other", *options)
    assert done.code == 2
    assert "read the weight past an adapter" in done.error and "in_proj" in done.error
    assert not (tmp_path / "other").exists()


def _jamba():
    layers = {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    }
    kernels = {"use_mamba_kernels": False, "mamba_d_state": 4}
    config = transformers.JambaConfig(**SIZES, **layers, **kernels, num_hidden_layers=2, num_experts=2)
    return transformers.JambaForCausalLM(config)


def _nemotron():
    mixers = {"ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1}
    config = transformers.NemotronHConfig(
        **SIZES, **mixers, head_dim=8, num_hidden_layers=4, hybrid_override_pattern="M-*-"
    )
    return transformers.NemotronHForCausalLM(config)


def _qwen_next():
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    heads = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = transformers.Qwen3NextConfig(
        **SIZES,
        **linear,
        **heads,
        **experts,
        num_hidden_layers=2,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    )
    return transformers.Qwen3NextForCausalLM(config)


@pytest.mark.parametrize("make", [_jamba, _nemotron, _qwen_next])
def test_a_name_that_few_layers_of_a_hybrid_have_is_counted(base_of, make):
    """huggingface/peft#3554: 4 of 56 layers were adapted."""
    base = base_of(make())
    coverage = attach(
        base, AdapterConfig(skip_layers=(), rank=4, target_modules=("q_proj",)), 0
    ).spec.coverage
    assert coverage.adapted == 1
    assert dict(coverage.left_out)[UNCHOSEN] >= 4
    assert coverage.text.startswith(f"adapts 1 of {coverage.matrices} weight matrices")


@pytest.mark.parametrize("make", [_jamba, _nemotron, _qwen_next])
def test_defaults_fit_a_hybrid_base_and_every_tensor_gets_a_gradient(base_of, make):
    attached = attach(base_of(make()), AdapterConfig(skip_layers=(), rank=4), 0)
    attached.model(input_ids=torch.arange(3, 19)[None], use_cache=False).logits.square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in attached.parameters.values()
    )


def _of(kind, **changes):
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "num_hidden_layers": 2, **changes})
    return lambda: transformers.AutoModelForCausalLM.from_config(config)


FAMILIES = {
    "gemma2": (_of("Gemma2", head_dim=8), {}),
    "phi3": (_of("Phi3", pad_token_id=0), {}),
    "bloom": (_of("Bloom", n_layer=2, n_head=4), {}),
    "opt": (_of("OPT", ffn_dim=48, word_embed_proj_dim=32), {}),
    "mixtral": (_of("Mixtral", num_local_experts=4), {EXPERTS: 16}),
    "gpt-oss": (_of("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2), {EXPERTS: 16}),
    # a router that is a linear layer by class, and gives two tensors
    "llama4": (
        _of("Llama4Text", head_dim=8, num_local_experts=2, intermediate_size_mlp=48),
        {EXPERTS: 8, "in layers that compute more than a product (router)": 2},
    ),
    "recurrent-gemma": (_of("RecurrentGemma", lru_width=32, attention_window_size=64), {BLOCKS: 16}),
    # its decoder alone has the layers that would read an encoder
    "bart": (
        _of("Bart", d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=48),
        {"in cross-attention, which text alone never reaches": 8},
    ),
    "falcon-mamba": (
        _of("FalconMamba", state_size=4),
        {
            "in state-space mixers (dt_proj: kernels read the weight past an adapter)": 2,
            "in state-space mixers (out_proj: kernels read the weight past an adapter)": 2,
        },
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bases_of_all_families_are_read_and_every_tensor_gets_a_gradient(base_of, family):
    """A probe that refuses what is good would be as bad as none."""
    make, left_out = FAMILIES[family]
    attached = attach(base_of(make()), AdapterConfig(skip_layers=(), rank=4), 0)
    assert dict(attached.spec.coverage.left_out) == {HEAD: 1, **left_out}
    attached.model(input_ids=torch.arange(3, 19)[None], use_cache=False).logits.square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in attached.parameters.values()
    )


def test_a_quantised_base_has_the_same_coverage(inputs):
    config = AdapterConfig(skip_layers=(), rank=4)
    plain = attach(_field_base(inputs, "llama"), config, 0).spec.coverage
    settings = {"model": str(inputs.base("llama")), "device": "cpu", "quantisation": "nf4"}
    assert attach(load_base(BaseConfig.model_validate(settings)), config, 0).spec.coverage == plain
    detach()


def test_a_refused_adapter_leaves_the_base_unwrapped(inputs, monkeypatch):
    """The base is shared: half wrapped, it would serve the next run of the process."""
    import peft

    base = _field_base(inputs, "think")
    modules = dict(base.model.named_modules())

    def stumble(model, config, adapter_name):
        config.target_modules = {"q_proj", "o_proj"}
        peft.tuners.lora.LoraModel(model, config, adapter_name)
        raise ValueError("Target module out_proj is incompatible.\nSecond line")

    monkeypatch.setattr(peft, "PeftModel", stumble)
    with pytest.raises(
        ConfigError, match=r"peft puts no lora/frozen_a on .* \(ValueError: Target module"
    ) as refusal:
        attach(base, AdapterConfig(skip_layers=(), rank=4), 0)
    assert "\n" not in str(refusal.value)
    assert dict(base.model.named_modules()) == modules
    assert not hasattr(base.model, "peft_config")


READS_EMBEDDINGS = {
    "opt": _of("OPT", ffn_dim=48, word_embed_proj_dim=16),
    "gemma3n": _of(
        "Gemma3nText",
        head_dim=8,
        vocab_size_per_layer_input=102,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    ),
}
_OUTSIDE = "outside all layers, which go with layer 0 (adapter.skip_layers)"


@pytest.mark.parametrize("kind", READS_EMBEDDINGS)
def test_what_reads_embeddings_outside_the_layers_goes_with_layer_0(base_of, kind):
    """A projection of the embeddings shows the tokens that layer 0 would show."""
    base = base_of(READS_EMBEDDINGS[kind]())
    spec = attach(base, AdapterConfig(rank=4), 0).spec
    assert {name.split("layers.")[1].split(".")[0] for name in spec.targets} == {"1"}
    assert dict(spec.coverage.left_out)[_OUTSIDE] >= 2
    everywhere = attach(base, AdapterConfig(rank=4, skip_layers=()), 0).spec
    assert [name for name in everywhere.targets if ".layers." not in name]


def test_a_projection_that_is_named_is_adapted(base_of):
    base = base_of(READS_EMBEDDINGS["opt"]())
    spec = attach(base, AdapterConfig(rank=4, target_modules=("project_in", "q_proj")), 0).spec
    assert len(spec.targets) == 2 and spec.targets[1].endswith("project_in")
