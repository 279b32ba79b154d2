"""Merging an exported adapter into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpeft.adapters.load_folder import cause_of, head_rows, load_adapter, logits_of, tokenizer_of
from fedpeft.bases.load import Base, load_apart, offline, quiet
from fedpeft.config.models import BaseConfig
from fedpeft.errors import ConfigError
from fedpeft.packing.peft_folder import check_weights, read_config
from fedpeft.runstore.files import whole_folder, writing

MOST_DIFFERENCE = 1e-3
"""Of the logits, over what the adapter does to them: float32 rounds far below."""
_PROBE = 16


def merge(folder: Path, out: Path, cfg: BaseConfig) -> Path:
    """Write the base with the adapter folded into its weights as a plain model folder, in float32.

    A quantised base is dequantised first and stays so: merging into quantised weights rounds the
    adapter away. The merged model computes what base and adapter compute together: both are run on a few
    tokens, and a method for which they differ is refused. A head that shares its weights with the embeddings
    gets its own where the adapter changes only one of them.

    Args:
        folder: an adapter folder of any peft method that can be merged.
        out: where to; must not exist or be empty. It appears whole or not at all.
        cfg: the base; loaded apart from the shared one.

    Returns:
        The folder ``out``.

    Raises:
        ConfigError: no adapter, an occupied output folder, an adapter of another base or of a method that
            cannot be merged.
        ExchangeError: the weights of the adapter are placeholders.
        BaseModelError: the base cannot be loaded.
    """
    config = read_config(folder)
    with writing(out):
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if occupied:
        raise ConfigError(f"{out} is not empty; give a new folder for the merged model")
    check_weights(folder)
    base = load_apart(cfg, head_rows(folder) if cfg.task == "sequence-classification" else None)
    tokenizer = tokenizer_of(folder, base)
    model = _merged(_dequantised(base), folder, str(config.get("peft_type")))
    with whole_folder(out) as made, quiet(), offline():
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return out


def _dequantised(base: Base) -> Any:
    if base.quantisation == "none":
        return base.model.float()
    model = base.model.dequantize().float()
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    return model


def _merged(model: Any, folder: Path, method: str) -> Any:
    """The base's model with the adapter folded in.

    Raises:
        ConfigError: the method cannot be merged, or what it computes would change.
    """
    plain = logits_of(model, _PROBE)
    loaded = load_adapter(model, folder)
    if not hasattr(loaded.base_model, "merge_and_unload"):
        raise ConfigError(
            f"{folder}: {method} cannot be merged, since it changes no weights of the base; load it "
            "beside the base instead"
        )
    tied = _separate(loaded)
    try:
        with quiet():
            adapted = logits_of(loaded, _PROBE)
            _place_saved(loaded)
            merged = loaded.merge_and_unload(safe_merge=True)
            after = logits_of(merged, _PROBE)
    except Exception as error:  # each method refuses in its own way
        cause = cause_of(error)
    else:
        # a grown base has more logits than the plain one, which then says nothing about the effect
        effect = float((adapted - plain).norm()) if adapted.shape == plain.shape else float(adapted.norm())
        difference = float((adapted - after).norm())
        if difference <= MOST_DIFFERENCE * effect + 1e-5 * float(adapted.norm()):
            if tied:
                _tie(merged)
            return merged
        cause = f"the merged logits would differ by {difference / max(effect, 1e-30):.1%} of its effect"
    raise ConfigError(
        f"{folder}: {method} cannot be merged into this base ({cause}); load it beside the base"
    )


def _place_saved(model: Any) -> None:
    """Put modules that an adapter saves whole in place of the base's; peft does it for single layers."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, wrapper in list(model.named_modules()):
        if isinstance(wrapper, ModulesToSaveWrapper) and wrapper.active_adapters:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wrapper.modules_to_save[wrapper.active_adapters[0]])


def _separate(model: Any) -> bool:
    """Give layers that share weights copies of their own, and say whether head and embeddings did.

    Layers that are there more than once (``layer_replication``) share them too.
    """
    import torch

    embeddings, head = _core(model.get_input_embeddings()), _core(model.get_output_embeddings())
    tied = head is not None and head.weight is embeddings.weight
    seen: set[int] = set()
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(value) in seen:
                setattr(module, name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
            seen.add(id(value))
    return tied


def _tie(model: Any) -> None:
    """Let head and embeddings be one again where merging has left them equal; else write them apart."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    same = bool((head.weight == embeddings.weight).all())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = same
    if same:
        head.weight = embeddings.weight


def _core(module: Any) -> Any:
    """The base's own layer within whatever peft has put around it."""
    while module is not None:
        inner = getattr(module, "original_module", None) or getattr(module, "base_layer", None)
        if inner is None:
            return module
        module = inner
    return None
