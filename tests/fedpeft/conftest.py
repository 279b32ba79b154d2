"""Toy models with adapters for the tests of training and privacy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest

VOCABULARY = 61


@dataclass(frozen=True)
class Toy:
    """A model and its trainables, as training sees an attached adapter."""

    model: Any
    layout: Any
    parameters: dict[str, Any]


def _config(arch: str) -> Any:
    from transformers import Gemma2Config, GPT2Config, LlamaConfig

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    rest = {"num_key_value_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "head_dim": 8}
    if arch == "gpt2":
        return GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=64)
    if arch == "gemma2":
        return Gemma2Config(**small, **rest, pad_token_id=0)
    return LlamaConfig(**small, **rest, pad_token_id=0)


def _peft_config(method: str, arch: str) -> Any:
    from peft import IA3Config, LoraConfig

    if method == "ia3":
        return IA3Config(task_type="CAUSAL_LM")
    task = "SEQ_CLS" if arch.endswith("-classifier") else "CAUSAL_LM"
    targets = ["c_attn", "c_proj"] if arch == "gpt2" else "all-linear"
    return LoraConfig(
        r=3, lora_alpha=6, target_modules=targets, task_type=task, fan_in_fan_out=arch == "gpt2"
    )


def _base(arch: str, folder: Any, nf4: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    config = _config(arch.removesuffix("-classifier"))
    if arch.endswith("-classifier"):
        config.num_labels = 3
        return AutoModelForSequenceClassification.from_config(config)
    model = AutoModelForCausalLM.from_config(config)
    if not nf4:
        return model
    model.save_pretrained(folder)
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32)


@pytest.fixture
def toy(tmp_path: Any) -> Callable[..., Toy]:
    """Make a toy: ``toy('llama', 'lora')``; methods: lora (both factors), lora-b (B alone), ia3."""
    import torch
    from peft import get_peft_model

    from fedpeft.exchange.layout import Layout

    def make(arch: str = "llama", method: str = "lora-b", nf4: bool = False, seed: int = 0) -> Toy:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(_base(arch, tmp_path, nf4), _peft_config(method, arch))
        for name, parameter in model.named_parameters():
            if method == "lora-b" and "lora_A" in name:
                parameter.requires_grad_(False)
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in parameters.values():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        return Toy(model, Layout.of(parameters), parameters)

    return make


@pytest.fixture
def toy_examples() -> Callable[..., list[Any]]:
    """Make examples of different lengths whose completion is the last three tokens."""
    from fedpeft.data import Example

    def make(count: int, seed: int = 0, classes: int = 0) -> list[Any]:
        rng = np.random.default_rng(seed)
        examples: list[Any] = []
        for index in range(count):
            ids = rng.integers(1, VOCABULARY, int(rng.integers(5, 15))).astype(np.int64)
            weights = np.zeros(len(ids), np.float32)
            weights[-3:] = 1
            label = index % classes if classes else -1
            examples.append(Example(ids, weights, label, len(ids) - 3))
        return examples

    return make
