"""Packed adapters: real peft folders of many methods in and out, and what each part costs and loses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.packing.file_format import Claim
from fedpeft.packing.pack import info, pack, unpack
from fedpeft.packing.recipe import Recipe

# transformers 5 warns about its own property when peft walks over the model's attributes
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # peft's, of tuned norms
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # torch's, of SHiRA
]

LINEAR = ["q_proj", "v_proj", "down_proj"]
CODED = ("lora_A", "lora_B", "miss_block", "ia3_l", "hada_", "lokr_", "vera_A", "vera_B")


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))


def peft_configs():
    import peft

    common = {"target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    return {
        "lora": peft.LoraConfig(r=4, modules_to_save=["lm_head"], **common),
        "dora": peft.LoraConfig(r=4, use_dora=True, **common),
        "rslora": peft.LoraConfig(r=4, use_rslora=True, rank_pattern={"v_proj": 2}, **common),
        "adalora": peft.AdaLoraConfig(init_r=4, total_step=10, **common),
        "miss": peft.MissConfig(r=4, **common),
        "ia3": peft.IA3Config(feedforward_modules=["down_proj"], **common),
        "loha": peft.LoHaConfig(r=4, **common),
        "lokr": peft.LoKrConfig(r=4, **common),
        "vera": peft.VeraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "ln": peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "shira": peft.ShiraConfig(r=4, **common),
    }


METHODS = (
    "lora",
    "dora",
    "rslora",
    "adalora",
    "miss",
    "ia3",
    "loha",
    "lokr",
    "vera",
    "ln",
    "prompt",
    "shira",
)


@pytest.fixture(params=METHODS)
def saved(request, tmp_path):
    """A method, and a folder with an adapter of it that has moved away from its start."""
    import peft
    import torch

    torch.manual_seed(0)
    model = peft.get_peft_model(llama(), peft_configs()[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return request.param, tmp_path / "adapter"


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_plain_peft_loads_what_is_unpacked(saved, tmp_path):
    import peft
    import torch

    _, folder = saved
    facts = pack(folder, tmp_path / "a.fpa", Recipe(step=0.1))
    assert info(tmp_path / "a.fpa") == facts
    unpack(tmp_path / "a.fpa", tmp_path / "back")
    before, after = weights(folder), weights(tmp_path / "back")
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
        k: (v.shape, v.dtype) for k, v in after.items()
    }
    assert json.loads((tmp_path / "back/adapter_config.json").read_text()) == json.loads(
        (folder / "adapter_config.json").read_text()
    )
    for name, value in after.items():
        start = 1.0 if "ia3_l" in name else 0.0
        moved = float(np.sqrt(np.mean(np.square(before[name] - start))))
        coded = any(part in name for part in CODED)
        assert np.allclose(value, before[name], rtol=2**-8, atol=0.06 * moved if coded else 0)
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "back"))
    loaded = peft.get_peft_model_state_dict(model)
    assert all(np.array_equal(loaded[name].detach().numpy(), value) for name, value in after.items())
    assert torch.isfinite(model(input_ids=torch.arange(8)[None]).logits).all()
    assert facts.peft_type == json.loads((folder / "adapter_config.json").read_text())["peft_type"]


def test_errors_and_bytes_by_part_are_what_they_are_said_to_be(saved, tmp_path):
    _, folder = saved
    facts = pack(folder, tmp_path / "a.fpa", Recipe(codec="ternary", density=0.3, step=0.3))
    unpack(tmp_path / "a.fpa", tmp_path / "back")
    before, after = weights(folder), weights(tmp_path / "back")
    assert facts.tensors == len(before)
    assert facts.values == sum(value.size for value in before.values())
    assert facts.bytes_total == (tmp_path / "a.fpa").stat().st_size
    assert facts.bytes_total == facts.bytes_header + sum(part.bytes for part in facts.parts)
    assert facts.bytes_source == (folder / "adapter_model.safetensors").stat().st_size
    assert facts.ratio == facts.bytes_source / facts.bytes_total
    bounds = {"levels": 0.3 / 12**0.5 * 1.1, "dense-bf16": 2**-8, "exact": 0.0, "ternary": 2.0}
    assert all(part.error <= bounds[part.codec] for part in facts.parts)
    for part in facts.parts:
        if part.codec == "ternary":
            names = [n for n in before if any(p in n for p in ("lora_B", "miss_block", "ia3_l", "hada_w2_b"))]
            names = names or [n for n in before if n.split(".")[-1] in ("lokr_w1", "lokr_w1_a")]
            start = 1.0 if "ia3_l" in names[0] else 0.0
            lost = np.concatenate([(after[n] - before[n]).ravel() for n in names])
            moved = np.concatenate([(before[n] - start).ravel() for n in names])
            assert part.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(moved), rel=1e-3)
            assert part.values == moved.size
            assert part.density == pytest.approx(0.3, abs=len(names) / moved.size)


def write_folder(folder, tensors, config=None):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | (config or {})))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def factors(seed=0, rank=4, width=64):
    rng = np.random.default_rng(seed)
    return {
        "m.lora_A.weight": rng.standard_normal((rank, width)).astype(np.float32),
        "m.lora_B.weight": rng.standard_normal((width, rank)).astype(np.float32),
    }


def parts(facts):
    return {part.codec: part for part in facts.parts}


def test_random_starts_are_not_cut(tmp_path):
    folder = write_folder(tmp_path / "in", factors(), {"init_lora_weights": "gaussian"})
    facts = pack(folder, tmp_path / "a", Recipe(codec="ternary", density=0.05))
    assert (parts(facts)["levels"].values, parts(facts)["ternary"].values) == (256, 256)
    kept = pack(folder, tmp_path / "b", Recipe(codec="ternary", density=0.05, keep=("lora_B",)))
    assert parts(kept).keys() == {"levels", "dense-bf16"}
    compeft = pack(folder, tmp_path / "c", Recipe(codec="ternary", density=0.05, alpha=1.0))
    assert parts(compeft)["ternary"].values == 512
    other = write_folder(tmp_path / "pissa", factors(), {"init_lora_weights": "pissa"})
    assert parts(pack(other, tmp_path / "d")).keys() == {"exact"}


@pytest.mark.parametrize(
    ("codec", "width", "error"),
    [("dense-fp32", 4, 0), ("dense-bf16", 2, 2e-3), ("int8", 1, 0.01), ("levels", 0.5, 0.16)],
)
def test_factors_that_are_no_change_have_a_choice_of_codecs(tmp_path, codec, width, error):
    folder = write_folder(tmp_path / "in", factors(width=1024))
    part = parts(pack(folder, tmp_path / "a", Recipe(codec="ternary", rest=codec)))[codec]
    unpack(tmp_path / "a", tmp_path / "back")
    before, after = (weights(f)["m.lora_A.weight"] for f in (folder, tmp_path / "back"))
    lost = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert part.bytes <= 4096 * width + 4
    assert part.error == pytest.approx(lost, rel=1e-3) and lost <= error


def test_ternary_keeps_the_projection_on_the_original(tmp_path):
    folder = write_folder(tmp_path / "in", factors(width=1024))
    pack(folder, tmp_path / "a", Recipe(codec="ternary", density=0.2))
    unpack(tmp_path / "a", tmp_path / "back")
    before, after = (weights(f)["m.lora_B.weight"].ravel() for f in (folder, tmp_path / "back"))
    assert before @ after / (before @ before) == pytest.approx(1, abs=1 / 64)  # scales have 7 bits
    assert np.count_nonzero(after) == round(0.2 * after.size)
    kept = np.abs(before)[after != 0]
    assert np.array_equal(np.sign(after[after != 0]), np.sign(before[after != 0]))
    assert kept.min() >= np.abs(before)[after == 0].max()


def test_an_alpha_is_compefts_rule(tmp_path):
    folder = write_folder(tmp_path / "in", factors(width=1024))
    pack(folder, tmp_path / "a", Recipe(codec="ternary", density=0.1, alpha=3.0))
    unpack(tmp_path / "a", tmp_path / "back")
    before = np.concatenate([v.ravel() for _, v in sorted(weights(folder).items())])
    after = np.concatenate([v.ravel() for _, v in sorted(weights(tmp_path / "back").items())])
    threshold = np.sort(np.abs(before))[-round(0.1 * before.size)]
    wanted = np.where(np.abs(before) >= threshold, np.sign(before), 0) * 3.0 * before.std()
    assert np.allclose(after, wanted, rtol=1 / 64)


def test_weights_keep_their_type(tmp_path):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file as save_torch

    folder = write_folder(tmp_path / "in", {k: v.astype(np.float16) for k, v in factors().items()})
    assert pack(folder, tmp_path / "a").dtype == "F16"
    unpack(tmp_path / "a", tmp_path / "half")
    assert all(v.dtype == np.float16 for v in weights(tmp_path / "half").values())
    save_torch(
        {k: torch.from_numpy(v).bfloat16() for k, v in factors().items()},
        folder / "adapter_model.safetensors",
    )
    facts = pack(folder, tmp_path / "b", Recipe(keep=("lora",)))
    assert (facts.dtype, facts.parts[0].error) == ("BF16", 0)
    unpack(tmp_path / "b", tmp_path / "brain")
    with (
        safe_open(tmp_path / "brain/adapter_model.safetensors", "pt") as after,
        safe_open(folder / "adapter_model.safetensors", "pt") as before,
    ):
        for name in before.keys():  # noqa: SIM118 - not a mapping
            assert torch.equal(before.get_tensor(name), after.get_tensor(name))


def test_tensors_that_are_no_floats_are_kept_exactly(tmp_path):
    tensors = factors() | {"m.indices": np.arange(12).reshape(3, 4), "m.flag": np.array([True, False])}
    tensors["m.double"] = np.array([[1 / 3]])
    folder = write_folder(tmp_path / "in", tensors)
    assert parts(pack(folder, tmp_path / "a"))["exact"].values == 15
    unpack(tmp_path / "a", tmp_path / "back")
    after = weights(tmp_path / "back")
    for name in ("m.indices", "m.flag", "m.double"):
        assert after[name].dtype == tensors[name].dtype and np.array_equal(after[name], tensors[name])


def test_a_large_adapter_becomes_small(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"base_model.model.layers.{i}.mlp.lora_B.weight" for i in range(20)]
    tensors = {name: rng.standard_t(4, (1000, 16)).astype(np.float32) for name in names}
    folder = write_folder(tmp_path / "in", tensors)
    facts = pack(folder, tmp_path / "a", Recipe(codec="ternary", density=0.05))
    assert facts.ratio > 85
    assert facts.bytes_header < 350
    assert pack(folder, tmp_path / "b").ratio > 5.8
    assert pack(folder, tmp_path / "c", Recipe(step=0.5)).ratio > 10


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "in", factors())
    for recipe in (Recipe(), Recipe(codec="ternary")):
        pack(folder, tmp_path / "a", recipe)
        pack(folder, tmp_path / "b", recipe)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_frozen_factor_of_a_run_costs_nothing(tmp_path, tiny_adapter):
    from fedpeft.adapters.export import export

    export(tiny_adapter, tmp_path / "adapter")
    unseeded = pack(tmp_path / "adapter", tmp_path / "a")
    facts = pack(tmp_path / "adapter", tmp_path / "b", Recipe(seed=0))
    assert (parts(facts)["seed"].bytes, parts(facts)["seed"].error) == (0, 0)
    assert facts.bytes_total < unseeded.bytes_total
    unpack(tmp_path / "b", tmp_path / "back")
    before, after = weights(tmp_path / "adapter"), weights(tmp_path / "back")
    assert all(np.array_equal(before[n], after[n]) for n in before if "lora_A" in n)
    assert "seed" not in parts(pack(tmp_path / "adapter", tmp_path / "c", Recipe(seed=1)))


def test_a_claim_travels_in_the_header(tmp_path):
    claim = Claim(records=3, records_sha256="0" * 64, loss=1.5, packed_loss=1.53)
    facts = pack(write_folder(tmp_path / "in", factors()), tmp_path / "a", claim=claim)
    assert facts.claim == claim
    assert info(tmp_path / "a").claim == claim
    assert claim.change == pytest.approx(0.02)


def test_folders_that_are_no_adapters_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        pack(tmp_path, tmp_path / "a")
    folder = write_folder(tmp_path / "in", factors())
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        pack(folder, tmp_path / "a")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        pack(folder, tmp_path / "a")
    save_file({"m.lora_B.weight": np.zeros(3, np.uint64)}, folder / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="U64"):
        pack(folder, tmp_path / "a")
    save_file({"m.lora_B.weight": np.full(3, np.nan, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="not finite"):
        pack(folder, tmp_path / "a")
    save_file({"m.lora_B.weight": np.zeros((0, 3), np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="no values"):
        pack(folder, tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be read"):
        info(tmp_path / "missing")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("settings", [{"density": 0}, {"density": 1.1}, {"step": 0}, {"alpha": -1.0}])
def test_recipes_out_of_range_are_refused(settings):
    with pytest.raises(ExchangeError, match=next(iter(settings))):
        Recipe(**settings)


def test_packing_needs_no_torch(tmp_path):
    folder = write_folder(tmp_path / "in", factors())
    code = (
        "import sys; from pathlib import Path; from fedpeft.packing.pack import pack, unpack;"
        "from fedpeft.packing.library import Library; from fedpeft.packing.diff import difference;"
        f"pack(Path({str(folder)!r}), Path({str(tmp_path / 'a')!r}));"
        f"unpack(Path({str(tmp_path / 'a')!r}), Path({str(tmp_path / 'b')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
