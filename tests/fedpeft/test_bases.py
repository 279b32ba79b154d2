import json
import shutil
import subprocess
import sys

import pytest
import torch

from fedpeft.bases import content_hash, describe_devices, forget_base, load_base, save_quantised
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError

IDS = torch.arange(3, 19)[None]


def _cfg(folder, **settings):
    return BaseConfig(model=str(folder), device="cpu", **settings)


@torch.no_grad()
def _logits(base):
    return base.model(input_ids=IDS).logits


def test_a_base_is_loaded_once_and_frozen(tiny_model_folder):
    cfg = _cfg(tiny_model_folder("llama"))
    base = load_base(cfg)
    assert load_base(cfg) is base
    assert (base.dtype, base.device, base.quantisation, base.task) == ("float32", "cpu", "none", "causal-lm")
    assert base.parameters == sum(p.numel() for p in base.model.parameters()) > 10_000
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not base.model.config.use_cache and base.pad_id == 0
    forget_base()
    again = load_base(cfg)
    assert again is not base and again.sha256 == base.sha256


def test_the_hash_is_of_the_content(tiny_model_folder, tmp_path):
    folder = tiny_model_folder("llama")
    reference = content_hash(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**settings, "transformers_version": "9", "_name_or_path": "x"})
    )
    assert content_hash(copy) == reference
    hashes = {reference, content_hash(folder, "nf4"), content_hash(folder, "int8")}
    (copy / "config.json").write_text(json.dumps({**settings, "rope_theta": 5.0}))
    hashes.add(content_hash(copy))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    shutil.copy(folder / "config.json", copy)
    (copy / "model.safetensors").write_bytes(weights)
    hashes.add(content_hash(copy))
    shutil.copy(folder / "model.safetensors", copy)
    assert content_hash(copy) == reference
    (copy / "tokenizer.json").write_text("{}")
    hashes.add(content_hash(copy))
    assert len(hashes) == 6


def test_the_agreed_hash_is_enforced(tiny_model_folder):
    folder = tiny_model_folder("llama")
    assert load_base(_cfg(folder, sha256=content_hash(folder).upper())).sha256 == content_hash(folder)
    with pytest.raises(
        BaseModelError, match=r"base.sha256 is 00 but .* has [0-9a-f]{64}; get the agreed base"
    ):
        load_base(_cfg(folder, sha256="00"))


def _broken(tmp_path, folder, name):
    target = shutil.copytree(folder, tmp_path / "b")
    if name == "no weights":
        (target / "model.safetensors").unlink()
    elif name == "cut weights":
        (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    elif name == "no config":
        (target / "config.json").unlink()
    elif name == "bad config":
        (target / "config.json").write_text("{")
    elif name == "unknown architecture":
        (target / "config.json").write_text('{"model_type": "nothing-like-it"}')
    elif name == "foreign quantisation":
        settings = json.loads((target / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": "gptq"}
        (target / "config.json").write_text(json.dumps(settings))
    elif name == "no tokenizer":
        (target / "tokenizer.json").unlink()
        (target / "tokenizer_config.json").unlink()
    elif name == "an adapter":
        (target / "config.json").rename(target / "adapter_config.json")
    return target


BROKEN = {
    "no weights": "holds no weights",
    "cut weights": "cannot be loaded as causal-lm",
    "no config": r"holds no config\.json$",
    "bad config": "not a model's configuration",
    "unknown architecture": "is of model_type 'nothing-like-it'",
    "foreign quantisation": "quantised with gptq; supported are",
    "no tokenizer": "holds no usable tokenizer",
    "an adapter": "it is an adapter: give its base",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_base_is_one_clear_line(tiny_model_folder, tmp_path, name):
    folder = _broken(tmp_path, tiny_model_folder("llama"), name)
    with pytest.raises(BaseModelError, match=BROKEN[name]) as caught:
        load_base(_cfg(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("model", ["./no/such", "/no/such/folder", "a/b/c/d"])
def test_a_missing_folder(model):
    with pytest.raises(BaseModelError, match="does not exist; give a model folder or a Hugging Face id"):
        load_base(BaseConfig(model=model))


@pytest.mark.parametrize("model", ["somebody/some-model", "some-model", "bad--id/..x"])
def test_a_hub_id_that_cannot_be_reached(model):
    with pytest.raises(BaseModelError, match=r"not found on the Hugging Face Hub \(HF_HUB_OFFLINE is set\)"):
        load_base(BaseConfig(model=model))


def test_a_file_is_not_a_base(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(BaseModelError, match="is a file; give the folder"):
        load_base(_cfg(tmp_path / "model.bin"))


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "nonsense"])
def test_unknown_devices(tiny_model_folder, device):
    with pytest.raises(BaseModelError, match=r"base\.device"):
        load_base(BaseConfig(model=str(tiny_model_folder("llama")), device=device))


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_quantised_bases(tiny_model_folder, quantisation):
    folder = tiny_model_folder("llama")
    exact = _logits(load_base(_cfg(folder)))
    base = load_base(_cfg(folder, quantisation=quantisation))
    assert base.quantisation == quantisation and base.sha256 == content_hash(folder, quantisation)
    assert base.sha256 != content_hash(folder)
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantisation] in kinds
    assert type(base.model.lm_head).__name__ == "Linear"
    error = (_logits(base) - exact).norm() / exact.norm()
    assert 0 < error < {"int8": 0.05, "nf4": 0.8}[quantisation]


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_no_pass_changes_a_quantised_base(tiny_model_folder, quantisation):
    base = load_base(_cfg(tiny_model_folder("llama"), quantisation=quantisation))
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    first = _logits(base)
    base.model.train()
    trained = _logits(base)  # in training mode int8 multiplies dequantised weights on CPUs
    base.model.eval()
    assert torch.equal(_logits(base), first)
    assert torch.equal(trained, first) or quantisation == "int8"
    stored = {name: parameter.data for name, parameter in base.model.named_parameters()}
    assert all(torch.equal(before[name], tensor) for name, tensor in stored.items())


def test_int8_does_not_couple_examples(tiny_model_folder):
    base = load_base(_cfg(tiny_model_folder("llama"), quantisation="int8"))
    batch = torch.stack([IDS[0], IDS[0].flip(0)])
    with torch.no_grad():
        assert torch.allclose(base.model(input_ids=batch).logits[:1], _logits(base), atol=1e-5)


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_a_saved_quantised_base_loads_with_the_same_numbers(tiny_model_folder, tmp_path, quantisation):
    base = load_base(_cfg(tiny_model_folder("llama"), quantisation=quantisation))
    expected = _logits(base)
    save_quantised(base, tmp_path / "saved")
    again = load_base(_cfg(tmp_path / "saved", quantisation=quantisation))
    assert torch.equal(_logits(again), expected)
    with pytest.raises(BaseModelError, match=rf"set base\.quantisation = '{quantisation}'"):
        load_base(_cfg(tmp_path / "saved"))


def test_a_new_classification_head_is_agreed(tiny_model_folder):
    folder = tiny_model_folder("llama")
    state = torch.random.get_rng_state()
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        forget_base()
        base = load_base(_cfg(folder, task="sequence-classification"), num_labels=5)
        heads.append(base.model.score.weight.clone())
    torch.random.set_rng_state(state)
    assert heads[0].shape == (5, 32) and torch.equal(*heads)
    nf4 = load_base(_cfg(folder, task="sequence-classification", quantisation="nf4"), num_labels=5)
    assert torch.equal(nf4.model.score.weight, heads[0]) and _logits(nf4).shape == (1, 5)


def test_a_base_without_dropout_is_the_same_in_both_modes(tiny_base):
    base = tiny_base("gpt2")
    expected = _logits(base)
    base.model.train()
    assert torch.equal(_logits(base), expected)
    base.model.eval()


def test_gradient_checkpointing_changes_no_number(tiny_base):
    expected = _logits(tiny_base("llama"))
    base = tiny_base("llama", gradient_checkpointing=True)
    assert torch.equal(_logits(base), expected)


def test_devices_are_described():
    cpu, *gpus = describe_devices()
    assert cpu.name == "cpu" and cpu.cores >= 1 and 0 < cpu.free <= cpu.memory
    assert len(gpus) == torch.cuda.device_count()


def test_importing_the_rooms_imports_no_torch():
    code = (
        "import sys, fedpeft.bases, fedpeft.data, fedpeft.adapters as _; print({'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
