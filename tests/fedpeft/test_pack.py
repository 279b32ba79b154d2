"""Packed adapters: real peft folders in and out, damage, hostile headers."""

import hashlib
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedpeft.adapters.pack import info, pack, unpack
from fedpeft.errors import ConfigError, EnvelopeError, ExchangeError, FedPeftError

# transformers 5 warns about its own property when peft walks over the model's attributes
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))


def peft_config(method):
    import peft

    linear = ["q_proj", "v_proj", "down_proj"]
    if method == "lora":
        return peft.LoraConfig(r=4, target_modules=linear, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    if method == "miss":
        return peft.MissConfig(r=4, target_modules=linear, task_type="CAUSAL_LM")
    return peft.IA3Config(target_modules=linear, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")


@pytest.fixture(params=["lora", "miss", "ia3"])
def saved(request, tmp_path):
    """A base, and a folder with an adapter that has moved away from its start."""
    import peft
    import torch

    torch.manual_seed(0)
    base = llama()
    model = peft.get_peft_model(base, peft_config(request.param))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return request.param, tmp_path / "adapter"


def test_plain_peft_loads_what_is_unpacked(saved, tmp_path):
    import peft
    import torch

    method, folder = saved
    facts = pack(folder, tmp_path / "a.fpa", density=1.0)
    unpack(tmp_path / "a.fpa", tmp_path / "back")
    assert info(tmp_path / "a.fpa") == facts
    before, after = (
        load_file(folder / "adapter_model.safetensors"),
        load_file(tmp_path / "back" / "adapter_model.safetensors"),
    )
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert json.loads((tmp_path / "back/adapter_config.json").read_text()) == json.loads(
        (folder / "adapter_config.json").read_text()
    )
    for name, value in after.items():
        if any(part in name for part in ("lora_B", "miss_block", "ia3_l")):
            start = 1.0 if "ia3_l" in name else 0.0
            moved = before[name] != start
            assert np.array_equal(np.sign(value - start)[moved], np.sign(before[name] - start)[moved])
        else:
            assert np.allclose(value, before[name], rtol=2**-8)
    model = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "back"))
    loaded = peft.get_peft_model_state_dict(model)
    assert all(np.array_equal(loaded[name].numpy(), value) for name, value in after.items())
    assert torch.isfinite(model(input_ids=torch.arange(8)[None]).logits).all()
    assert facts.peft_type.lower() == method


def test_errors_and_bytes_by_part_are_what_they_are_said_to_be(saved, tmp_path):
    _, folder = saved
    facts = pack(folder, tmp_path / "a.fpa", density=0.3)
    unpack(tmp_path / "a.fpa", tmp_path / "back")
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")
    changed = [name for name in before if any(p in name for p in ("lora_B", "miss_block", "ia3_l"))]
    start = 1.0 if "ia3_l" in changed[0] else 0.0
    lost = np.concatenate([(after[name] - before[name]).ravel() for name in changed])
    moved = np.concatenate([(before[name] - start).ravel() for name in changed])
    assert facts.ternary_error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(moved), rel=1e-4)
    assert facts.ternary_values == moved.size
    assert facts.density == pytest.approx(0.3, abs=1 / moved.size)
    assert facts.dense_values == sum(v.size for n, v in before.items() if n not in changed)
    assert facts.dense_error < 2**-8
    assert facts.bytes_total == (tmp_path / "a.fpa").stat().st_size
    assert facts.bytes_total == facts.bytes_header + facts.bytes_dense + facts.bytes_ternary
    assert facts.bytes_source == (folder / "adapter_model.safetensors").stat().st_size
    assert facts.ratio == facts.bytes_source / facts.bytes_total


def write_folder(folder, tensors, config=None):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | (config or {})))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def factors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "m.lora_A.weight": rng.standard_normal((4, 64)).astype(np.float32),
        "m.lora_B.weight": rng.standard_normal((64, 4)).astype(np.float32),
    }


def test_random_starts_stay_dense(tmp_path):
    folder = write_folder(tmp_path / "in", factors(), {"init_lora_weights": "gaussian"})
    facts = pack(folder, tmp_path / "a", density=0.05)
    assert (facts.dense_values, facts.ternary_values) == (256, 256)
    kept = pack(folder, tmp_path / "b", density=0.05, keep=["lora_B"])
    assert (kept.dense_values, kept.ternary_values, kept.ternary_error) == (512, 0, 0.0)
    other = write_folder(tmp_path / "pissa", factors(), {"init_lora_weights": "pissa"})
    assert pack(other, tmp_path / "c", density=0.05).ternary_values == 0


@pytest.mark.parametrize(
    ("codec", "width", "error"), [("dense-fp32", 4, 0), ("dense-bf16", 2, 2e-3), ("int8", 1, 8e-3)]
)
def test_the_dense_part_has_a_choice_of_codecs(tmp_path, codec, width, error):
    folder = write_folder(tmp_path / "in", factors())
    facts = pack(folder, tmp_path / "a", dense_codec=codec)
    unpack(tmp_path / "a", tmp_path / "back")
    before = load_file(folder / "adapter_model.safetensors")["m.lora_A.weight"]
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")["m.lora_A.weight"]
    assert facts.bytes_dense == 256 * width + (4 if codec == "int8" else 0)
    lost = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert facts.dense_error == pytest.approx(lost, rel=1e-3)
    assert lost <= error


def test_half_precision_adapters(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    folder = write_folder(tmp_path / "in", {k: v.astype(np.float16) for k, v in factors().items()})
    assert pack(folder, tmp_path / "a").dense_values == 256
    save_torch(
        {k: torch.from_numpy(v).bfloat16() for k, v in factors().items()},
        folder / "adapter_model.safetensors",
    )
    assert pack(folder, tmp_path / "b").dense_error == 0


def test_a_large_adapter_becomes_small(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"base_model.model.layers.{i}.mlp.lora_B.weight" for i in range(20)]
    tensors = {name: rng.standard_t(4, (1000, 16)).astype(np.float32) for name in names}
    facts = pack(write_folder(tmp_path / "in", tensors), tmp_path / "a", density=0.05)
    assert facts.ratio > 85
    assert facts.bytes_header < 300


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "in", factors())
    pack(folder, tmp_path / "a")
    pack(folder, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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
    save_file({"m.lora_B.weight": np.zeros(3, np.int64)}, folder / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="I64"):
        pack(folder, tmp_path / "a")
    save_file({"m.lora_B.weight": np.full(3, np.nan, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ExchangeError, match="not finite"):
        pack(folder, tmp_path / "a")
    with pytest.raises(ExchangeError, match="density"):
        pack(write_folder(tmp_path / "in2", factors()), tmp_path / "a", density=0)
    with pytest.raises(ConfigError, match="cannot be read"):
        info(tmp_path / "missing")
    assert not (tmp_path / "a").exists()


def with_digest(body):
    return body + hashlib.sha256(body).digest()


def test_every_truncation_and_every_changed_byte_is_refused(tmp_path):
    pack(write_folder(tmp_path / "in", factors()), tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    bad = tmp_path / "bad"
    for end in range(0, len(data), 7):
        bad.write_bytes(data[:end])
        with pytest.raises(ExchangeError):
            info(bad)
    for position in range(0, len(data), 11):
        bad.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ExchangeError):
            info(bad)
    with pytest.raises(ExchangeError):
        unpack(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mutations_with_a_right_digest_raise_nothing_else(tmp_path):
    pack(write_folder(tmp_path / "in", factors()), tmp_path / "a")
    body = (tmp_path / "a").read_bytes()[:-32]
    rng = np.random.default_rng(0)
    for _ in range(700):
        changed = bytearray(body)
        changed[int(rng.integers(len(body)))] = int(rng.integers(256))
        (tmp_path / "bad").write_bytes(with_digest(bytes(changed)))
        try:
            info(tmp_path / "bad")
        except FedPeftError as error:
            assert isinstance(error, ExchangeError)


EMPTY = {
    "config": {},
    "dense_codec": "dense-bf16",
    "dense": {},
    "ternary": {},
    "bytes_source": 1,
    "ternary_error": 0.0,
    "dense_error": 0.0,
}


def hostile(header):
    head = zlib.compress(header if isinstance(header, bytes) else json.dumps(header).encode())
    return with_digest(b"\x89FPA\x01" + struct.pack("<I", len(head)) + head + b"\0" * 40)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dense": {"a": [1 << 40]}}, "claims"),
        ({"ternary": {"lora_B": [1 << 30, 1 << 30]}}, "claims"),
        ({"ternary": {"lora_B": [50_000, 1000]}}, "claims"),
        ({"ternary": {"other": [4]}}, "start is not known"),
        ({"dense": {"a": [0]}}, "header"),
        ({"dense": {"a": [-1]}}, "header"),
        ({"dense": {"a": "x"}}, "header"),
        ({"dense": {"b": [2], "a": [2]}}, "sorted"),
        ({"dense": {"a": [1] * 9}}, "header"),
        ({"dense": {"a": [10**30, 10**30]}}, "claims"),
        ({"dense": {"__metadata__": [4]}}, "reserves"),
        ({"dense": {"lora_B": [4]}, "ternary": {"lora_B": [4]}}, "twice"),
        ({"ternary_error": float("inf")}, "header"),
        ({"more": 1}, "header"),
        ({"dense_codec": "ternary"}, "header"),
        ({"ternary_error": -1.0}, "header"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, change, reason):
    (tmp_path / "bad").write_bytes(hostile(EMPTY | change))
    with pytest.raises(ExchangeError, match=reason):
        info(tmp_path / "bad")


def test_a_header_that_inflates_without_end_is_refused(tmp_path):
    (tmp_path / "bad").write_bytes(hostile(b" " * (17 << 20)))
    with pytest.raises(ExchangeError, match="too long"):
        info(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(hostile(b"{"))
    with pytest.raises(ExchangeError, match="header"):
        info(tmp_path / "bad")


def test_a_payload_of_the_wrong_length_is_an_envelope_error(tmp_path):
    (tmp_path / "bad").write_bytes(hostile(EMPTY | {"dense": {"a": [30]}}))
    with pytest.raises(EnvelopeError, match="bytes"):
        info(tmp_path / "bad")


def test_packing_needs_no_torch(tmp_path):
    folder = write_folder(tmp_path / "in", factors())
    code = (
        "import sys; from pathlib import Path; from fedpeft.adapters.pack import pack, unpack;"
        f"pack(Path({str(folder)!r}), Path({str(tmp_path / 'a')!r}));"
        f"unpack(Path({str(tmp_path / 'a')!r}), Path({str(tmp_path / 'b')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
