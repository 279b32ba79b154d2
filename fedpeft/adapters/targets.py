"""Which modules of a base get an adapter."""

from __future__ import annotations

import difflib
import re
from typing import Any

from fedpeft.bases.load import HEAD_MODULES, Base
from fedpeft.config.models import ALL_LINEAR, AdapterConfig
from fedpeft.errors import ConfigError

_READ_AS_WEIGHTS = ("out_proj", "dt_proj")
"""Of a state-space mixer: layers whose weight fused kernels read; peft refuses some of them."""
_CROSS_ATTENTION = frozenset(("encoder_attn", "crossattention", "cross_attn"))
"""Names of what reads an encoder or an image, in a decoder that has neither."""
_LAYER = re.compile(r"\.(\d+)\.")
"""A layer holds modules; a linear module of a list, as Gemma 3n's ``altup_projections.0``, is none."""


def linear_layers(model: Any) -> dict[str, Any]:
    """Every linear layer by name, quantised ones and GPT-2's Conv1D included, in the model's order."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def closed_layers(model: Any) -> dict[str, str]:
    """The linear layers that never carry an adapter, and why: what a line for people says of them."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    text, closed, expert_names = _text_stack(model), dict[str, str](), _names_of_experts(model)
    layers = linear_layers(model)
    samples = {type(module): module for module in layers.values()}
    products = {kind: _passes_as_linear(sample) for kind, sample in samples.items()}
    for name, module in layers.items():
        parent, _, own_name = name.rpartition(".")
        if module is head or set(name.split(".")) & set(HEAD_MODULES):
            closed[name] = "in the output head"
        elif not name.startswith(text):
            closed[name] = f"outside the text stack ({'.'.join(name.split('.')[:2])})"
        elif own_name in _READ_AS_WEIGHTS and _is_state_space(model.get_submodule(parent)):
            closed[name] = f"in state-space mixers ({own_name}: kernels read the weight past an adapter)"
        elif not model.config.is_encoder_decoder and set(name.split(".")) & _CROSS_ATTENTION:
            closed[name] = "in cross-attention, which text alone never reaches"
        elif not products[type(module)]:
            closed[name] = f"in layers that compute more than a product ({own_name})"
        elif own_name in expert_names:
            closed[name] = f"beside experts ({own_name}, which peft takes for the experts' weights)"
    return closed


def linear_modules(model: Any) -> dict[str, Any]:
    """The linear layers that can carry an adapter, by name."""
    closed = closed_layers(model)
    return {name: module for name, module in linear_layers(model).items() if name not in closed}


def fused_experts(model: Any) -> dict[str, Any]:
    """Parameters of the text stack that hold one matrix for each expert of a mixture, by name."""
    text = _text_stack(model)
    fused = fused_matrices(model)
    return {
        name: tensor for name, (tensor, of_experts) in fused.items() if of_experts and name.startswith(text)
    }


def fused_matrices(model: Any) -> dict[str, tuple[Any, bool]]:
    """Parameters that hold several matrices, by name, and whether they are those of experts."""
    import torch

    return {
        f"{name}.{own_name}": (tensor, "expert" in type(module).__name__.lower())
        for name, module in model.named_modules()
        if not isinstance(module, torch.nn.Conv1d | torch.nn.Conv3d)
        for own_name, tensor in module.named_parameters(recurse=False)
        if tensor.dim() == 3 and tensor.shape[0] > 1
    }


def _text_stack(model: Any) -> str:
    """How names of the language model begin in a base of several modalities; empty: it is the whole."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")


def _passes_as_linear(module: Any) -> bool:
    """Whether a layer's pass is that of a linear layer; some routers are linear layers that give more."""
    import torch

    kind = type(module)
    plain = not isinstance(module, torch.nn.Linear) or kind.forward is torch.nn.Linear.forward
    return plain or kind.__module__.startswith("bitsandbytes.") or _is_product(module)


def _is_product(module: Any) -> bool:
    """Whether a linear layer with a pass of its own computes what one without does, as Falcon's."""
    import torch

    ones = module.weight.new_ones((1, module.in_features))
    try:
        with torch.no_grad():
            output = module(ones)
    except Exception:  # of a pass that takes more than one tensor
        return False
    wanted = torch.nn.functional.linear(ones, module.weight, module.bias)
    if not isinstance(output, torch.Tensor) or output.shape != wanted.shape:
        return False
    return output.is_meta or bool(torch.allclose(output, wanted))


def _names_of_experts(model: Any) -> frozenset[str]:
    """Names that peft takes for experts' weights, wherever they stand, since transformers 5 fused those.

    A shared expert of the same names would get no adapter, and the others one of another rank.
    """
    from peft.utils import transformers_weight_conversion as conversion

    families: dict[str, str] = vars(conversion)["_MODEL_TO_CONVERSION_PATTERN"]
    names: dict[str, dict[str, str]] = vars(conversion)["_MOE_TARGET_MODULE_MAPPING"]
    return frozenset(names.get(families.get(model.config.model_type, ""), ()))


def _is_state_space(mixer: Any) -> bool:
    """Whether a module is a mixer as in Mamba, which kernels compute from its weights at one go."""
    return {"A_log", "D"} <= {name for name, _ in mixer.named_parameters(recurse=False)}


def find_targets(base: Base, cfg: AdapterConfig, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Full names of the modules that get an adapter, sorted.

    ``cfg.target_modules`` are name suffixes; empty means the method's own ``default``, and where that is
    empty too all linear modules. With layer 0 go the modules outside all layers that no suffix names: the
    projections of ELECTRA, ALBERT, OPT and Gemma 3n read the embeddings as layer 0 does.

    Raises:
        ConfigError: a suffix fits no module, a layer to be left out is none, or no layer is left.
    """
    closed = closed_layers(base.model)
    names = [name for name in linear_layers(base.model) if name not in closed]
    if not names:
        raise ConfigError(f"{base.name!r} has no linear module that can carry an adapter; take another base")
    wanted = () if ALL_LINEAR in cfg.target_modules else cfg.target_modules or default
    for suffix in wanted:
        if not any(fits(name, suffix) for name in names):
            raise ConfigError(_unknown(suffix, names, closed))
    last = max((layer for name in names if (layer := layer_of(name)) is not None), default=0)
    if strangers := sorted(set(cfg.skip_layers) - set(range(last + 1))):
        raise ConfigError(
            f"adapter.skip_layers names layer {strangers[0]}, but the layers of {base.name!r} are 0 to {last}"
        )
    chosen = [name for name in names if not wanted or any(fits(name, suffix) for suffix in wanted)]
    skipped = {name for name in chosen if layer_of(name) in cfg.skip_layers}
    if 0 in cfg.skip_layers:
        named = [suffix for suffix in cfg.target_modules if suffix != ALL_LINEAR]
        outside = [name for name in chosen if layer_of(name) is None]
        skipped.update(name for name in outside if not any(fits(name, suffix) for suffix in named))
    targets = [name for name in chosen if name not in skipped]
    if all(layer_of(name) is None for name in targets) and skipped:
        raise ConfigError(
            f"adapter.skip_layers leaves no layer of {base.name!r} for an adapter (they are 0 to {last}); "
            f"{len(names)} modules are linear: leave out fewer layers, or change adapter.target_modules"
        )
    return tuple(sorted(targets))


def layer_of(name: str) -> int | None:
    """Index of the layer that a module belongs to, None outside the layers.

    >>> layer_of("model.layers.12.mlp.up_proj")
    12
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def fits(name: str, suffix: str) -> bool:
    """Whether a module's full name ends with a suffix, whole parts only."""
    return name == suffix or name.endswith(f".{suffix}")


def _unknown(suffix: str, names: list[str], closed: dict[str, str]) -> str:
    known = sorted({name.rsplit(".", 1)[-1] for name in names})
    near = ", ".join(difflib.get_close_matches(suffix, known, n=3, cutoff=0.3) or known)
    reason = next((reason for name, reason in closed.items() if fits(name, suffix)), None)
    if reason is not None:
        return f"adapter.target_modules: {suffix!r} is {reason} and carries no adapter; others: {near}"
    return f"adapter.target_modules: {suffix!r} fits no linear module; nearest: {near}"
