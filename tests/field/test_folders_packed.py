"""Adapter folders as peft and others write them, through pack, unpack and diff."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from .input_adapters import set_keys, write_by_hand


def roundtrip(fedpeft, folder, tmp_path, *options):
    """What ``adapter pack`` prints for machines, and the folder that is unpacked."""
    packed = fedpeft("adapter", "pack", folder, "-o", tmp_path / "a.fpa", "--json", *options)
    assert packed.code == 0, packed.err
    assert fedpeft("adapter", "unpack", tmp_path / "a.fpa", "-o", tmp_path / "back").code == 0
    return json.loads(packed.out), tmp_path / "back"


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["zero3-empty", "zero3-shards"])
@pytest.mark.parametrize("command", ["pack", "eval", "merge"])
def test_a_file_that_zero3_left_empty_is_named_as_such(fedpeft, inputs, tmp_path, name, command):
    """huggingface/trl#4416; huggingface/peft#2892, #453; deepspeedai/DeepSpeed#7900."""
    options = ["--data", inputs.data("held.jsonl")] if command == "eval" else ["-o", tmp_path / "out"]
    done = fedpeft("adapter", command, inputs.adapter(name), *options)
    assert "ZeRO-3" in done.error
    assert done.code == 5
    assert not (tmp_path / "out").exists()


def test_tensors_without_values_that_a_method_leaves_are_kept(fedpeft, inputs, tmp_path):
    """AdaLoRA prunes a module to rank 0 and saves factors of shapes (0, n), (m, 0); huggingface/peft#453."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {"lora_A": (0, 32), "lora_B": (32, 0), "lora_E": (0, 1)}
    tensors = {f"{module}.{part}": np.zeros(shape) for part, shape in shapes.items()}
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A"] = np.ones((2, 32))
    write_by_hand(tmp_path / "pruned", inputs.base("llama"), tensors, peft_type="ADALORA")
    _, back = roundtrip(fedpeft, tmp_path / "pruned", tmp_path)
    assert {name: tuple(value.shape) for name, value in weights(back).items()} == {
        name: value.shape for name, value in tensors.items()
    }


@pytest.mark.parametrize("name", ["ln-0.001", "saved-head-3e-5"])
def test_small_changes_of_norms_and_saved_modules_are_kept(fedpeft, inputs, tmp_path, name):
    """huggingface/peft#2421, #1836: bfloat16 has 8 bits, and a change of 0.1 % of a weight is below them."""
    _, back = roundtrip(fedpeft, inputs.adapter(name), tmp_path)
    before, after = weights(inputs.adapter(name)), weights(back)
    whole = [key for key in before if ".lora_" not in key]
    assert whole and all(torch.equal(before[key], after[key]) for key in whole)


def test_small_changes_of_magnitudes_are_kept(fedpeft, inputs, tmp_path):
    """huggingface/peft#2421: a DoRA magnitude that moved by 0.002 of itself."""
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "dora")
    tensors = weights(folder)
    module = next(iter(tensors)).rpartition(".lora_")[0]
    tensors[f"{module}.lora_magnitude_vector"] = 1 + 0.002 * torch.randn(32)
    save_file(tensors, folder / "adapter_model.safetensors")
    set_keys(folder, use_dora=True)
    facts, back = roundtrip(fedpeft, folder, tmp_path)
    name = f"{module}.lora_magnitude_vector"
    assert torch.equal(weights(back)[name], tensors[name])
    assert {part["codec"] for part in facts["parts"]} == {"exact", "levels"}


def test_each_tensor_has_the_type_that_it_had(fedpeft, inputs, tmp_path):
    """huggingface/peft#2421: float32 heads beside factors of 16 bits; extremes of float16 stay finite."""
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "mixed")
    tensors = {name: value.half() for name, value in weights(folder).items()}
    names = sorted(tensors)
    tensors[names[0]][0, 0] = 65504.0
    tensors[names[1]] = tensors[names[1]].bfloat16()
    tensors["base_model.model.lm_head.weight"] = torch.randn(102, 32)
    tensors["base_model.model.model.norm.weight"] = torch.tensor([65504.0, 6e-8]).half()
    save_file(tensors, folder / "adapter_model.safetensors")
    _, back = roundtrip(fedpeft, folder, tmp_path)
    after = weights(back)
    assert {name: value.dtype for name, value in after.items()} == {
        name: value.dtype for name, value in tensors.items()
    }
    assert all(value.isfinite().all() for value in after.values())
    for name in ("base_model.model.lm_head.weight", "base_model.model.model.norm.weight"):
        assert torch.equal(after[name], tensors[name])


def test_patterns_of_alpha_are_pefts_expressions(fedpeft, inputs):
    """huggingface/peft#3582, #2194, PR#2419; huggingface/diffusers#14409: expressions."""
    pair = inputs.adapter("alpha-regex"), inputs.adapter("alpha-none")
    change = json.loads(fedpeft("adapter", "diff", *pair, "--json").out)["weight_change"]
    assert 0.5 < change < 1  # one module of four is scaled ten times
    assert json.loads(fedpeft("adapter", "diff", pair[0], pair[0], "--json").out)["weight_change"] == 0


def test_the_first_pattern_in_the_files_order_counts(fedpeft, inputs, tmp_path):
    """huggingface/peft#2194: an ending before a longer name hides it."""
    first = shutil.copytree(inputs.adapter("alpha-none"), tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    set_keys(first, alpha_pattern={"q_proj": 80, "layers.0.self_attn.q_proj": 8})
    set_keys(second, alpha_pattern={"q_proj": 80})
    change = json.loads(fedpeft("adapter", "diff", first, second, "--json").out)["weight_change"]
    assert change == 0


def test_an_adapter_of_72000_tensors_is_packed(fedpeft, inputs, tmp_path):
    """unslothai/unsloth#6936; vllm-project/vllm PR#41384, PR#47088: a pair of factors for every expert."""
    facts, back = roundtrip(fedpeft, inputs.adapter("moe-72k"), tmp_path)
    assert facts["tensors"] == 72_000
    assert len(weights(back)) == 72_000


def test_too_many_tensors_are_refused_before_they_are_coded(fedpeft, inputs, tmp_path):
    """unslothai/unsloth#6936: the limit is named, and not that of a file that was never written."""
    one = np.ones((1, 1))
    names = [f"base_model.model.{'x' * 60}.{i}.lora_A.weight" for i in range(150_000)]
    write_by_hand(tmp_path / "huge", inputs.base("llama"), dict.fromkeys(names, one))
    done = fedpeft("adapter", "pack", tmp_path / "huge", "-o", tmp_path / "a.fpa")
    assert "150000 tensors are too many" in done.error
    assert not (tmp_path / "a.fpa").exists()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("multi", "it holds adapters in mail, news: give"),
        (
            "bin-only",
            "adapter_model.bin is there: load it with peft and save it with safe",
        ),
    ],
)
@pytest.mark.parametrize("command", ["pack", "eval", "merge"])
def test_what_a_folder_holds_instead_is_named(fedpeft, inputs, tmp_path, name, cause, command):
    """huggingface/transformers PR#26270, #34733; huggingface/peft#309."""
    options = ["--data", inputs.data("held.jsonl")] if command == "eval" else ["-o", tmp_path / "out"]
    done = fedpeft("adapter", command, inputs.adapter(name), *options)
    assert cause in done.error
    assert done.code == 2


def test_a_value_that_is_no_number_is_named(fedpeft, inputs, tmp_path):
    done = fedpeft("adapter", "pack", inputs.adapter("nan"), "-o", tmp_path / "a.fpa")
    assert "lora_B" in done.error and "not finite" in done.error


def test_files_of_version_2_are_still_read(fedpeft, inputs, tmp_path):
    """A file that needs nothing new is one of version 2, bit by bit."""
    fedpeft("adapter", "pack", inputs.adapter("good"), "-o", tmp_path / "a.fpa")
    assert (tmp_path / "a.fpa").read_bytes()[:5] == b"\x89FPA\x02"
    fedpeft("adapter", "pack", inputs.adapter("ln-0.001"), "-o", tmp_path / "b.fpa")
    assert (tmp_path / "b.fpa").read_bytes()[:5] == b"\x89FPA\x03"
    assert fedpeft("adapter", "info", tmp_path / "b.fpa").code == 0
