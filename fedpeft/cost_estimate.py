"""What a plan costs a node: memory by part and time of a step, from shapes alone.

The base is built without memory (torch's ``meta`` device), the adapter is put on it, and all is counted;
nothing is downloaded or trained. The figures are estimates: what a kernel keeps for itself is not known here.
docs/benchmarks.md has them beside measured ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedpeft.bases.known_shapes import SHAPES
from fedpeft.bases.runtime import choose_device, choose_dtype, prepare
from fedpeft.bases.source import base_folder
from fedpeft.config import Config
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError

QUANTISED = {"int8": 1.03, "nf4": 0.53}
"""Bytes of a quantised weight, from the formats' definitions (nf4: block 64, double quantisation)."""
# Master weights, gradient and AdamW's two moments, float32.
_TRAINED = 16


@dataclass(frozen=True)
class Estimate:
    """What one node needs.

    Attributes:
        parameters: of the base.
        trainable: values of the adapter that are trained and exchanged.
        base_bytes: frozen weights.
        adapter_bytes: adapter, gradient and optimiser.
        per_example_bytes: gradients of single records under DP; 0 without.
        activation_bytes: what the backward pass of one batch needs, logits of trained tokens included.
        step_flops: floating-point operations of one step, records of `data.max_length` tokens.
        coverage: how much of the base is adapted, and what updates then show, for people.
    """

    parameters: int
    trainable: int
    base_bytes: int
    adapter_bytes: int
    per_example_bytes: int
    activation_bytes: int
    step_flops: int
    coverage: str

    @property
    def memory(self) -> int:
        """Bytes in all, without the process itself (about 0.6 GiB, on GPUs the same again there)."""
        return self.base_bytes + self.adapter_bytes + self.per_example_bytes + self.activation_bytes


def estimate(config: Config) -> Estimate:
    """Count what a node of a plan needs, every record as long as `data.max_length`.

    Raises:
        BaseModelError: the base is not on this machine and its shape is not known.
        ConfigError: the adapter does not fit the base.
    """
    prepare()
    model, sizes, trainable, coverage = _shapes(config)
    width = _bytes_per_value(config.base)
    records, tokens = config.federation.batch_size, config.federation.batch_size * config.data.max_length
    weight = QUANTISED.get(config.base.quantisation, width)
    private = config.privacy.unit in ("record", "person") and config.privacy.trust == "local"
    return Estimate(
        parameters=sizes.linear + sizes.other,
        trainable=trainable,
        base_bytes=round(sizes.linear * weight + sizes.other * width),
        adapter_bytes=_TRAINED * trainable,
        per_example_bytes=4 * trainable * records if private else 0,
        activation_bytes=round(tokens * width * sizes.activations(config.base.gradient_checkpointing))
        + _logit_bytes(config, model, tokens),
        step_flops=round(tokens * sizes.flops(config.base.gradient_checkpointing)),
        coverage=coverage,
    )


def measure_flops(cfg: BaseConfig, size: int = 2048, repeat: int = 3) -> float:
    """Floating-point operations a second of this machine, in products of square matrices."""
    import torch

    device = choose_device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    a = torch.ones(size, size, dtype=choose_dtype(cfg.dtype, device), device=device)
    seconds: list[float] = []
    for _ in range(repeat):
        started = time.perf_counter()
        float((a @ a)[0, 0])  # reading a value waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


@dataclass(frozen=True)
class _Sizes:
    """Values of a base: weights of linear layers, all others; layers, and those a backward pass reaches."""

    linear: int
    other: int
    hidden: int
    layer_values: int
    layers: int
    backward_layers: int

    @classmethod
    def of(cls, model: Any, adapted: tuple[str, ...]) -> _Sizes:
        from fedpeft.adapters.targets import layer_of, linear_modules

        modules = linear_modules(model)
        linear = sum(module.weight.numel() for module in modules.values())
        layers = {layer_of(name) for name in modules} - {None}
        first = min((layer for name in adapted if (layer := layer_of(name)) is not None), default=0)
        a_layer = [module for name, module in modules.items() if layer_of(name) == first]
        # Of each linear layer its output is kept, of norms and residuals about four times the width.
        hidden = int(model.get_input_embeddings().weight.shape[1])
        values = sum(int(module.weight.shape[0]) for module in a_layer) + 4 * hidden
        count = max(len(layers), 1)
        return cls(linear, model.num_parameters() - linear, hidden, values, count, max(count - first, 1))

    def activations(self, checkpointing: bool) -> float:
        """Values kept for the backward pass, for each token."""
        if checkpointing:
            return self.backward_layers * self.hidden + 2 * self.layer_values
        return self.backward_layers * self.layer_values

    def flops(self, checkpointing: bool) -> float:
        """Operations for each token: forward through all, backward through the adapted layers alone.

        The base is frozen: its weights have no gradient, so backward costs as much as forward.
        """
        backward = self.backward_layers / self.layers * (2 if checkpointing else 1)
        return 2 * self.linear * (1 + backward)


def _shapes(config: Config) -> tuple[Any, _Sizes, int, str]:
    """The base without memory, its sizes, the number of trainable values, and what is adapted."""
    import torch
    from peft import PeftModel

    from fedpeft.adapters.attach import adapter_tensors
    from fedpeft.adapters.methods.base import Spec, method_of, rank_of
    from fedpeft.bases.load import auto_class, quiet

    with torch.device("meta"), quiet():
        model = auto_class(config.base.task).from_config(_model_config(config.base))
        facts = {"name": config.base.model, "parameters": model.num_parameters(), "task": config.base.task}
        base: Any = SimpleNamespace(model=model, fresh=(), **facts)
        adapter = config.adapter
        named = {name: getattr(adapter, name) for name in ("trainable_tokens", "output_tokens")}
        ids = {name: tuple(range(len(tokens))) for name, tokens in named.items()}  # as many rows as tokens
        adapter = adapter.model_copy(update=ids)
        spec = Spec.of(base, adapter, rank_of(adapter, None))
        sizes = _Sizes.of(model, spec.targets)
        wrapped: Any = PeftModel(model, spec.parts.configure(method_of(config.adapter).build(spec)))
    trained, _ = adapter_tensors(wrapped, spec)
    return model, sizes, sum(value.numel() for value in trained.values()), spec.coverage.text


def _model_config(cfg: BaseConfig) -> Any:
    """The configuration of a base that lies here, or of one whose shape is known."""
    from transformers import AutoConfig

    if cfg.model in SHAPES and not Path(cfg.model).exists():
        return AutoConfig.for_model(**SHAPES[cfg.model])
    try:
        folder = base_folder(cfg)
    except BaseModelError as error:
        known = ", ".join(sorted(SHAPES))
        raise BaseModelError(f"{error}; without it shapes are known of {known}") from None
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _bytes_per_value(cfg: BaseConfig) -> int:
    """Bytes of a value in the compute type; a plan for a GPU is estimated as there, wherever this runs."""
    import torch

    if cfg.dtype != "auto":
        return torch.finfo(getattr(torch, cfg.dtype)).bits // 8
    return 2 if cfg.device.startswith("cuda") else 4


def _logit_bytes(config: Config, model: Any, tokens: int) -> int:
    """Logits, their softmax and their gradient, float32, where a token bears loss: completions alone."""
    if config.base.task != "causal-lm":
        return 0
    share = 1.0 if config.data.prompt_weight else 0.25
    return round(3 * 4 * tokens * share * int(model.config.get_text_config().vocab_size))
