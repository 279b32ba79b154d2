"""Adapter folders as peft and others write them, odd ones among them."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from .input_bases import VOCABULARY

ATTENTION = ["q_proj", "v_proj"]
CAUSAL = {"task_type": "CAUSAL_LM"}


def lora(**changes):
    return peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION, **CAUSAL, **changes})


def save_adapter(
    folder, base, config, *, std=0.05, rows=None, kind=transformers.AutoModelForCausalLM, **load
):
    """Save an adapter with every trainable moved by a normal step; ``rows``: of a vocabulary grown before."""
    torch.manual_seed(1)
    model = kind.from_pretrained(base, **load)
    if rows:
        model.resize_token_embeddings(rows)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * std)
    model.save_pretrained(folder)
    set_keys(folder, base_model_name_or_path=str(base))


def set_keys(folder: Path, **changes) -> None:
    """Change keys of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=1))


def _by_peft(folder: Path, bases: Path) -> None:
    llama = bases / "llama"
    layers = ["input_layernorm", "post_attention_layernorm"]
    head = ["embed_tokens", "lm_head"]
    configs = {
        "good": lora(),
        "prompt-tuning": peft.PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
        "lora-bias": lora(lora_bias=True),
        "trainable-tokens": lora(trainable_token_indices=[3, 4, 5]),
        "alpha-regex": lora(alpha_pattern={r"layers\.0\..*q_proj": 80}, task_type=None),
        "alpha-none": lora(task_type=None),
    }
    for name, config in configs.items():
        save_adapter(folder / name, llama, config)
    tied = lora(target_modules=["q_proj", "lm_head"])
    save_adapter(folder / "tied-lm-head", bases / "tied", tied)
    classifier = transformers.AutoModelForSequenceClassification
    save_adapter(folder / "seq-cls", llama, lora(task_type="SEQ_CLS"), kind=classifier, num_labels=2)
    save_adapter(folder / "resized", llama, lora(modules_to_save=head), rows=VOCABULARY + 4)
    save_adapter(folder / "gpt2", bases / "gpt2-16", lora(target_modules=["c_attn"]))
    save_adapter(folder / "padid", bases / "padid", lora())
    save_adapter(folder / "ln-0.001", llama, peft.LNTuningConfig(target_modules=layers, **CAUSAL), std=0.001)
    save_adapter(folder / "saved-head-3e-5", llama, lora(modules_to_save=["lm_head"]), std=3e-5)


def _altered(folder: Path) -> None:
    for name in ("other-prefix", "revision", "unknown-type", "bin-only"):
        shutil.copytree(folder / "good", folder / name)
    weights = folder / "other-prefix" / "adapter_model.safetensors"
    renamed = {
        key.replace(".layers", ".language_model.layers"): value for key, value in load_file(weights).items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})
    set_keys(folder / "revision", revision="refs/pr/7", base_model_name_or_path="org/model")
    set_keys(folder / "unknown-type", peft_type="QUANTUM")
    pickled = folder / "bin-only" / "adapter_model.safetensors"
    torch.save(load_file(pickled), pickled.with_suffix(".bin"))
    pickled.unlink()
    for name in ("news", "mail"):
        shutil.copytree(folder / "good", folder / "multi" / name)


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """A safetensors file of float32 tensors, also of those that libraries refuse to write."""
    header: dict = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, values in tensors.items():
        raw = np.asarray(values, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [end, end + len(raw)]}
        parts.append(raw)
        end += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def write_by_hand(folder: Path, base: Path, tensors: dict[str, np.ndarray], **changes) -> None:
    """An adapter folder that no library has written."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **CAUSAL}
    settings |= {"base_model_name_or_path": str(base), **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))


def _by_hand(folder: Path, bases: Path) -> None:
    rng = np.random.default_rng(0)
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = rng.normal(size=(4, 32)), rng.normal(size=(32, 4)) * 0.02
    names = [f"{module}.lora_A.weight", f"{module}.lora_B.weight"]
    empty = np.zeros((0,))
    one = np.ones((1, 1))
    experts = {
        f"base_model.model.model.layers.{i // 128}.mlp.experts.{i % 128}.{part}.{factor}.weight": one
        for i in range(12000)
        for part in ("gate_proj", "up_proj", "down_proj")
        for factor in ("lora_A", "lora_B")
    }
    llama = bases / "llama"
    write_by_hand(folder / "zero3-empty", llama, {})
    write_by_hand(folder / "zero3-shards", llama, dict.fromkeys(names, empty))
    write_by_hand(folder / "nan", llama, dict(zip(names, (a, b * np.nan), strict=True)))
    write_by_hand(folder / "moe-72k", llama, experts, r=1)


def make(folder: Path, bases: Path) -> None:
    """Write all adapters below a folder."""
    folder.mkdir()
    _by_peft(folder, bases)
    _altered(folder)
    _by_hand(folder, bases)
