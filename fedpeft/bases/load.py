"""Loading the frozen base: once per process, hashed, quantised, agreed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.bases.files import content_hash, read_model_config, stored_quantisation, view
from fedpeft.bases.probe import Probed, check_ids, check_length, check_passes
from fedpeft.bases.runtime import choose_device, choose_dtype, give_back_memory, prepare
from fedpeft.bases.source import base_folder
from fedpeft.bases.weights import check_files, check_kind, check_loaded
from fedpeft.config.models import BaseConfig, Quantisation, Task
from fedpeft.errors import BaseModelError, first_line
from fedpeft.rng import stream

if TYPE_CHECKING:
    import torch

# Heads stay unquantised: bitsandbytes turns a newly initialised one into a layer that cannot run.
HEAD_MODULES = (
    "classifier",
    "score",
    "pooler",
    "pre_classifier",
    "classification_head",
    "lm_head",
    "embed_out",
)


@dataclass(frozen=True)
class Base:
    """The frozen pretrained model that all simulated nodes of a process share.

    Attributes:
        model: a transformers ``PreTrainedModel`` in which no parameter requires a gradient.
        tokenizer: its tokenizer, with a padding token.
        name: as configured.
        folder: where it was loaded from.
        sha256: content hash (`fedpeft.bases.files.content_hash`).
        quantisation: none, int8 or nf4.
        dtype: compute type, such as float32.
        device: such as cpu or cuda:0.
        parameters: number of parameters before quantisation packs them.
        task: causal-lm or sequence-classification.
        fresh: names of head tensors that its folder lacks and that are set from their names.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    name: str
    folder: Path
    sha256: str
    quantisation: Quantisation
    dtype: str
    device: str
    parameters: int
    task: Task
    fresh: tuple[str, ...] = ()

    @property
    def pad_id(self) -> int:
        """Token id used for padding."""
        return int(self.tokenizer.pad_token_id)


_loaded: dict[tuple[BaseConfig, int | None], Base] = {}


def load_base(cfg: BaseConfig, num_labels: int | None = None, longest: int | None = None) -> Base:
    """Load a base, or return the one that this process already holds for the same settings.

    One base is kept at a time: asking for another lets the first go. The weights are never changed
    afterwards, neither by adapters (`fedpeft.adapters.attach`) nor by the in-place repacking with which
    bitsandbytes answers a forward pass in evaluation mode on processors with AVX512-BF16.

    Args:
        cfg: which, and how.
        num_labels: classes of a sequence classifier.
        longest: most tokens of a record, ``data.max_length``; None: nobody asks.

    Raises:
        BaseModelError: missing, not a model, of another hash, not supported, or not what training takes for
            granted (`fedpeft.bases.probe`).
        ConfigError: it has fewer positions than ``longest``.
    """
    key = (cfg.model_copy(update={"sha256": None}), num_labels)
    if key not in _loaded:
        base = load_apart(cfg, num_labels)
        _loaded.clear()
        _loaded[key] = base
    _check_hash(cfg, _loaded[key].sha256)
    if longest is not None:
        check_length(_loaded[key].model, cfg.model, longest)
    return _loaded[key]


def load_apart(cfg: BaseConfig, num_labels: int | None = None) -> Base:
    """Load a base that nobody else holds; for work that changes its weights, such as merging.

    Raises:
        BaseModelError: as `load_base`.
    """
    prepare()
    folder = base_folder(cfg)
    config = read_model_config(folder)
    check_kind(cfg.model, config, cfg.task)
    quantisation = stored_quantisation(config)
    _check_quantisation(cfg, quantisation)
    check_files(cfg.model, folder, config)
    sha256 = content_hash(folder, cfg.quantisation)
    _check_hash(cfg, sha256)
    return _load(cfg, folder, sha256, quantisation, num_labels)


def forget_base() -> None:
    """Let the base of this process go, so that its memory can be freed."""
    _loaded.clear()


def save_quantised(base: Base, folder: Path) -> None:
    """Save a quantised base with its tokenizer, so that it loads without being quantised again."""
    with quiet():
        base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def _check_hash(cfg: BaseConfig, sha256: str) -> None:
    if cfg.sha256 is not None and cfg.sha256.lower() != sha256:
        raise BaseModelError(
            f"base.sha256 is {cfg.sha256} but {cfg.model!r} has {sha256}; get the agreed base"
        )


def _check_quantisation(cfg: BaseConfig, quantisation: str) -> None:
    if quantisation not in ("none", "int8", "nf4"):
        raise BaseModelError(
            f"{cfg.model!r} is quantised with {quantisation}; supported are none, int8 and nf4 "
            "(bitsandbytes): take the base that it was made from"
        )
    if quantisation not in ("none", cfg.quantisation):
        raise BaseModelError(
            f"{cfg.model!r} holds {quantisation} weights; set base.quantisation = {quantisation!r}"
        )


def _load(cfg: BaseConfig, folder: Path, sha256: str, quantisation: str, num_labels: int | None) -> Base:
    import torch

    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg.device)
    dtype = choose_dtype(cfg.dtype, device)
    with view(folder) as shown, offline():
        model, missing = _model(cfg, shown, _placement(cfg, device, dtype, quantisation), num_labels)
        tokenizer = _tokenizer(shown, cfg)
        _rename(model, tokenizer, shown, folder)
    _fill_head(cfg, model, missing)
    probed = Probed(cfg.model, model, tokenizer, cfg.task, dtype)
    check_ids(probed)
    _settle(model, dtype, device, cfg)
    model.config.pad_token_id = tokenizer.pad_token_id
    check_passes(probed)
    give_back_memory()
    return Base(
        model=model,
        tokenizer=tokenizer,
        name=cfg.model,
        folder=folder,
        sha256=sha256,
        quantisation=cfg.quantisation,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        parameters=int(model.num_parameters()),
        task=cfg.task,
        fresh=tuple(missing),
    )


def _placement(
    cfg: BaseConfig, device: torch.device, dtype: torch.dtype, quantisation: str
) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that say how weights are read and where they go."""
    import torch
    from transformers import BitsAndBytesConfig

    place: dict[str, Any] = {"dtype": dtype}
    if device.type == "cuda" or cfg.quantisation != "none":
        place["device_map"] = {"": str(device)}
    if cfg.quantisation == "none":
        return place
    place["dtype"] = torch.float32
    # transformers compares beginnings and ends of names: a pooler stands within its encoder
    skip = [*HEAD_MODULES, "pooler.dense"] if cfg.task == "sequence-classification" else None
    if quantisation == "none" and cfg.quantisation == "nf4":
        place["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip,
        )
    elif quantisation == "none":
        place["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=skip
        )
    return place


def auto_class(task: Task) -> Any:
    """The class of transformers that makes a model with the head of a task."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if task == "sequence-classification" else AutoModelForCausalLM


def _model(
    cfg: BaseConfig, folder: Path, place: dict[str, Any], num_labels: int | None
) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that the folder lacks."""
    if cfg.task == "sequence-classification":
        place |= {"num_labels": num_labels} if num_labels else {}
    try:
        with quiet():
            model, info = auto_class(cfg.task).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **place,
            )
    except Exception as error:  # whatever a foreign folder provokes becomes one line
        cause = first_line(error).replace(str(folder), cfg.model)
    else:
        check_loaded(cfg.model, model.config, info, model.state_dict())
        return model, sorted(info["missing_keys"])
    raise BaseModelError(f"base.model {cfg.model!r} cannot be loaded as {cfg.task}: {cause}")


def _rename(model: Any, tokenizer: Any, shown: Path, folder: Path) -> None:
    """Let model and tokenizer name the base's own folder, not the view that is gone after loading."""
    model.name_or_path = model.config._name_or_path = str(folder)
    for attributes in (vars(tokenizer), tokenizer.init_kwargs):
        for key, value in attributes.items():
            if isinstance(value, str) and value.startswith(str(shown)):
                attributes[key] = str(folder) + value.removeprefix(str(shown))


def _fill_head(cfg: BaseConfig, model: Any, missing: list[str]) -> None:
    """Set a new classification head from its name alone, so that all parties hold the same one."""
    import torch

    strangers = [name for name in missing if not set(name.split(".")) & set(HEAD_MODULES)]
    if strangers or (missing and cfg.task == "causal-lm"):
        name = (strangers or missing)[0]
        raise BaseModelError(f"base.model {cfg.model!r} is no complete {cfg.task} model: {name!r} is missing")
    tensors = dict(model.named_parameters())
    for name in missing:
        values = fresh_head(name, tuple(tensors[name].shape))
        with torch.no_grad():
            tensors[name].copy_(torch.from_numpy(values))


def fresh_head(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The first values of a new head's tensor, a function of its name and shape; biases are 0."""
    scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.0
    return (stream(0, 0, "", f"head:{name}").standard_normal(shape) * scale).astype(np.float32)


def _settle(model: Any, dtype: torch.dtype, device: torch.device, cfg: BaseConfig) -> None:
    """Freeze the model and fix everything that could later change its weights or its numbers."""
    model.requires_grad_(False)
    model.config.use_cache = False
    _drop_dropout(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = dtype, True
    if cfg.quantisation != "none":
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    elif device.type == "cpu":
        model.to(device)
    model.eval()
    if cfg.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise BaseModelError(
                f"base.model {cfg.model!r} cannot recompute its activations: set "
                "base.gradient_checkpointing = false"
            )
        with quiet():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()


def _drop_dropout(model: Any) -> None:
    """Turn every dropout of the frozen base off: it would draw from torch's global generator."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attn_dropout", "resid_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def load_tokenizer(cfg: BaseConfig) -> Any:
    """The tokenizer of a base, without its weights.

    Raises:
        BaseModelError: there is no such base, or it holds none.
    """
    prepare()
    return _tokenizer(base_folder(cfg), cfg)


def _tokenizer(folder: Path, cfg: BaseConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # as above
        cause = type(error).__name__
    else:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is not None:
            return tokenizer
        cause = "it has neither a padding nor an end token"
    raise BaseModelError(f"base.model {cfg.model!r} holds no usable tokenizer ({cause}); add tokenizer.json")


@contextlib.contextmanager
def offline() -> Generator[None]:
    """Keep loaders off the network: all that a base or an adapter is lies in its folder."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep transformers' progress bars, load reports and deprecation notes off the terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
