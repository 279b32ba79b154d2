"""Configurations of the adapter kinds that peft saves, for a tiny base of each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Names = tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """Names of the modules of an architecture, as adapters target them."""

    attention: Names
    mlp: Names
    norms: Names
    embeddings: str


LLAMA = Architecture(("q_proj", "v_proj"), ("down_proj",), ("input_layernorm",), "embed_tokens")
ARCHITECTURES = {
    "llama": LLAMA,
    "gpt2": Architecture(("c_attn",), ("mlp.c_proj",), ("ln_1",), "wte"),
    "qwen3": LLAMA,
}
_LINEAR = "LINEAR"
"""Stands for the attention and MLP modules of the architecture."""

LORA_KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "LoRA, bias=all": {"bias": "all"},
    "LoRA, lora_bias": {"lora_bias": True},
    "LoRA, gaussian": {"init_lora_weights": "gaussian"},
    "LoRA, patterns": {"rank_pattern": {"PATTERN": 2}, "alpha_pattern": {"PATTERN": 16}},
    "LoRA, one layer": {"layers_to_transform": [1]},
    "LoRA and saved head": {"modules_to_save": ["lm_head"]},
    "LoRA and tokens": {"trainable_token_indices": [73, 85, 89]},
    "LoRA of embeddings": {"target_modules": ["EMBEDDINGS"]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}
_TARGETED = {"target_modules": _LINEAR}
OTHER_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 4, "total_step": 200, **_TARGETED}),
    "LoHa": ("LoHaConfig", {"r": 4, **_TARGETED}),
    "LoKr": ("LoKrConfig", {"r": 4, **_TARGETED}),
    "(IA)3": ("IA3Config", {"feedforward_modules": "MLP", **_TARGETED}),
    "MiSS": ("MissConfig", {"r": 4, **_TARGETED}),
    "OFT": ("OFTConfig", {"oft_block_size": 8, **_TARGETED}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 8, **_TARGETED}),
    "VeRA": ("VeraConfig", {"r": 8, "target_modules": "ATTENTION"}),
    "PVeRA": ("PveraConfig", {"r": 8, "target_modules": "ATTENTION"}),
    "RandLoRA": ("RandLoraConfig", {"r": 4, "target_modules": "ATTENTION"}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 100, **_TARGETED}),
    "WaveFT": ("WaveFTConfig", {"n_frequency": 100, "target_modules": "ATTENTION"}),
    "HRA": ("HRAConfig", {"r": 4, **_TARGETED}),
    "C3A": ("C3AConfig", {"block_size": 16, "target_modules": "ATTENTION"}),
    "RoAd": ("RoadConfig", {"variant": "road_1", "group_size": 16, **_TARGETED}),
    "SHiRA": ("ShiraConfig", {"r": 4, **_TARGETED}),
    "VB-LoRA": ("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 16, **_TARGETED}),
    "HiRA": ("HiraConfig", {"r": 4, **_TARGETED}),
    "GraLoRA": ("GraloraConfig", {"r": 4, "gralora_k": 2, **_TARGETED}),
    "DeLoRA": ("DeloraConfig", {"r": 4, **_TARGETED}),
    "GLoRA": ("GloraConfig", {"r": 4, **_TARGETED}),
    "LN tuning": ("LNTuningConfig", {"target_modules": "NORMS"}),
    "Trainable tokens": (
        "TrainableTokensConfig",
        {"token_indices": [73, 85, 89], "target_modules": ["EMBEDDINGS"]},
    ),
    "BEFT": ("BeftConfig", {"target_modules": "ATTENTION"}),
    "PEANuT": ("PeanutConfig", {"r": 4, **_TARGETED}),
    "PSOFT": ("PsoftConfig", {"r": 8, **_TARGETED}),
    "OSF": ("OSFConfig", {**_TARGETED}),
    "TinyLoRA": ("TinyLoraConfig", {"target_modules": "ATTENTION"}),
    "UniLoRA": ("UniLoraConfig", {"r": 4, "theta_d_length": 64, "target_modules": "ATTENTION"}),
    "Lily": ("LilyConfig", {"r": 4, **_TARGETED}),
    "FRoD": ("FrodConfig", {"target_modules": "ATTENTION"}),
    "DEFT": ("DeftConfig", {"target_modules": "ATTENTION"}),
    "SuperTuning": ("SupertuningConfig", {"target_modules": "ATTENTION"}),
    "Prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 4}),
    "P-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}),
    "Prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "CPT": ("CPTConfig", {"cpt_token_ids": [5, 6, 7, 8], "cpt_tokens_type_mask": [1, 2, 2, 4]}),
    "Llama-Adapter": ("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}),
    "Cartridge": ("CartridgeConfig", {"num_virtual_tokens": 4}),
}


def kinds(architecture: Architecture) -> dict[str, Callable[[], Any]]:
    """What builds the configuration of each kind, by its name."""
    makers = {
        name: _maker("LoraConfig", {"r": 4, **_TARGETED, **settings}) for name, settings in LORA_KINDS.items()
    }
    makers |= {name: _maker(*entry) for name, entry in OTHER_KINDS.items()}
    return {name: lambda make=make: make(architecture) for name, make in makers.items()}


def _maker(name: str, settings: dict[str, Any]) -> Callable[[Architecture], Any]:
    def make(architecture: Architecture) -> Any:
        import peft

        filled = {key: _filled(value, architecture) for key, value in settings.items()}
        return getattr(peft, name)(task_type="CAUSAL_LM", **filled)

    return make


def _filled(value: Any, names: Architecture) -> Any:
    if isinstance(value, dict):
        return {_filled_one(key, names): part for key, part in value.items()}
    if isinstance(value, list):
        return [_filled_one(part, names) for part in value]
    lists = {_LINEAR: names.attention + names.mlp, "ATTENTION": names.attention, "MLP": names.mlp}
    lists["NORMS"] = names.norms
    return list(lists[value]) if isinstance(value, str) and value in lists else value


def _filled_one(part: Any, names: Architecture) -> Any:
    return {"EMBEDDINGS": names.embeddings, "PATTERN": names.attention[-1]}.get(part, part)
