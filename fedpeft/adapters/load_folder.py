"""Loading an adapter folder of any peft method: all of it, onto the base that it is for, or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.adapters.untrusted_config import check_foreign, with_names
from fedpeft.bases.load import Base, offline, quiet
from fedpeft.errors import ConfigError
from fedpeft.packing.peft_folder import WEIGHTS_FILE, check_weights, read_config

Shapes = dict[str, list[int]]

_PREFIX = "base_model.model."
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_MISSING = "Found missing adapter keys"
_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", re.DOTALL)
_HEAD = {"classifier", "score"}


def load_adapter(model: Any, folder: Path) -> Any:
    """The peft model of an adapter folder around a base's model, frozen; nothing is asked of a hub.

    A base with fewer rows of embeddings than the adapter was trained on is grown to them.

    Raises:
        ConfigError: the folder holds no adapter, one that asks for more than adapting modules by their names
            (`fedpeft.adapters.untrusted_config`), or one that does not fit the model: of another shape,
            with names that the model does not have, or that makes no pass with finite logits.
        ExchangeError: its weights are placeholders (`fedpeft.packing.peft_folder.check_weights`).
    """
    from peft import PeftModel

    config = read_config(folder)
    _check_known(config, folder)
    check_weights(folder)
    shapes = _shapes(folder)
    config = with_names(config, _modules_of(model, shapes, config["peft_type"]))
    check_foreign(config, folder)
    _grow(model, shapes)
    try:
        with offline(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(model, str(folder), config=_config(config))
            _check_names(loaded, shapes, any(_MISSING in str(entry.message) for entry in warned), folder)
            finite = bool(logits_of(loaded, tokens=2).isfinite().all())
    except ConfigError:
        raise
    except Exception as error:  # whatever a foreign folder provokes becomes one line
        cause = cause_of(error)
    else:
        if finite:
            return loaded
        cause = "its logits are not finite: is there a NaN or an infinity in its weights?"
    raise ConfigError(f"{folder} holds an adapter that does not fit this base ({cause})")


def logits_of(model: Any, tokens: int) -> Any:
    """Logits of the first few tokens of the vocabulary, the same for each call."""
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    ids = torch.arange(tokens, device=device).remainder(rows)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()


def cause_of(error: Exception) -> str:
    """What a library says, in one line: of shapes that differ the first, else the first line."""
    text = str(error)
    if mismatch := _MISMATCH.search(text):
        name, there, here = mismatch.groups()
        return f"{name} has shape {there} in the adapter and {here} in the base"
    line = next((line for line in text.splitlines() if line.strip()), "")[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def tokenizer_of(folder: Path, base: Base) -> Any:
    """The tokenizer that lies in an adapter folder, where one does; else that of the base.

    Raises:
        ConfigError: it cannot be read, or text can become tokens that nothing has embeddings for.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER):
        return base.tokenizer
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # as above
        cause = cause_of(error)
    else:
        rows = base.model.get_input_embeddings().weight.shape[0]
        _fit(tokenizer, max(rows, _embedding_rows(base.model, _shapes(folder))), base, folder)
        return tokenizer
    raise ConfigError(f"the tokenizer in {folder} cannot be read ({cause}); remove it to use the base's")


def _fit(tokenizer: Any, rows: int, base: Base, folder: Path) -> None:
    """Give a tokenizer a padding token within ``rows`` embeddings, and refuse it if it knows more of text."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokens = (tokenizer.eos_token, tokenizer.unk_token, base.tokenizer.pad_token)
        usable = (token for token in tokens if token and tokenizer.convert_tokens_to_ids(token) < rows)
        tokenizer.pad_token = next(usable, tokenizer.pad_token)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    unused = special - set(tokenizer.all_special_ids)
    last = max(set(tokenizer.get_vocab().values()) - unused, default=0)
    if last >= rows:
        raise ConfigError(
            f"the tokenizer in {folder} has {last + 1} ids, base and adapter have {rows} embeddings: remove "
            "it to use the base's, or save the adapter with its embeddings (save_embedding_layers=True)"
        )


def head_rows(folder: Path) -> int | None:
    """Number of classes of a classification adapter, read from its head; None: it holds none."""
    heads = [
        shape[0]
        for name, shape in sorted(_shapes(folder).items())
        if _HEAD & set(name.split(".")) and name.endswith(".weight") and "lora_" not in name
    ]
    return heads[-1] if heads else None


def _check_known(config: Mapping[str, Any], folder: Path) -> None:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = config.get("peft_type")
    if not kind:
        raise ConfigError(f"adapter_config.json of {folder} names no peft_type; save the adapter with peft")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ConfigError(
            f"peft {peft.__version__} does not know the adapter type {str(kind)[:60]!r} of {folder}; update "
            "peft, or convert the adapter to LoRA where it was trained"
        )


def _config(config: Mapping[str, Any]) -> Any:
    """The configuration for peft: what was checked, and nothing that it reads from the file by itself."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]]
    return kind.from_peft_type(**kind.check_kwargs(**{**config, "auto_mapping": None}))


def _modules_of(model: Any, shapes: Shapes, method: str) -> set[str]:
    """Names of the model's modules that the file holds tensors of this method for."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    modules = {name for name, _ in model.named_modules()}
    start = {str(kind.value): start for kind, start in PEFT_TYPE_TO_PREFIX_MAPPING.items()}.get(method)
    targets: set[str] = set()
    for name in shapes if start else ():
        parts = name.removeprefix(_PREFIX).split(".")
        end = next((i for i, part in enumerate(parts) if start and part.startswith(start)), 0)
        targets.add(".".join(parts[:end]))
    return targets & modules - {""}


def _shapes(folder: Path) -> Shapes:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_FILE, "numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping


def _grow(model: Any, shapes: Shapes) -> None:
    """Give a base the rows of embeddings that the adapter has beyond its own; it is never made smaller."""
    wanted = _embedding_rows(model, shapes)
    embeddings = model.get_input_embeddings()
    if embeddings is not None and wanted > embeddings.weight.shape[0]:
        with quiet():
            model.resize_token_embeddings(wanted, mean_resizing=False)
        model.requires_grad_(False)


def _embedding_rows(model: Any, shapes: Shapes) -> int:
    """The most rows that the adapter gives to the base's embeddings or to its head; 0: none."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is part for part in embeddings)]
    axes = {"weight": 0, "lora_B.weight": 0, "lora_embedding_A": 1}
    rows = [
        shapes[key][axis]
        for name in names
        for end, axis in axes.items()
        if len(shapes.get(key := f"{_PREFIX}{name}.{end}", ())) > axis
    ]
    return max(rows, default=0)


def _check_names(model: Any, shapes: Shapes, peft_misses: bool, folder: Path) -> None:
    """Refuse an adapter of which a tensor went nowhere, or a model of which one was left as it started."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        embeddings = set(get_peft_model_state_dict(model, save_embedding_layers=True))
    missing = sorted(names - shapes.keys())
    unexpected = sorted(shapes.keys() - names - embeddings - set(model.state_dict()))
    # peft renames tensors of fused experts while it loads them: then both lists are long and it misses none
    if not peft_misses and (missing or not unexpected):
        return
    parts = [f"it has {unexpected[0]!r}"] if unexpected else []
    parts += [f"the base wants {missing[0]!r}"] if missing else []
    raise ConfigError(
        f"{folder} holds an adapter whose names do not fit this base: {', '.join(parts)}; give the base that "
        "it was trained on, or rename its tensors"
    )
