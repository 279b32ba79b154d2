"""A GGUF file, as llama.cpp and Ollama keep models, as an ordinary base folder."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fedpeft.bases.files import content_hash
from fedpeft.bases.load import offline, quiet
from fedpeft.bases.runtime import prepare
from fedpeft.errors import BaseModelError, first_line
from fedpeft.runstore.files import whole_folder

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class ImportedBase:
    """What an import wrote.

    Attributes:
        folder: a base folder: safetensors, config and tokenizer.
        architecture: ``model_type`` of its configuration, such as llama.
        parameters: number of parameters.
        sha256: content hash of the folder without quantisation (``base.sha256``).
    """

    folder: Path
    architecture: str
    parameters: int
    sha256: str


def import_gguf(file: Path, folder: Path, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> ImportedBase:
    """Write the model of a GGUF file as a base folder, its weights dequantised.

    Blocks of 4 to 8 bits are expanded once; the folder then holds ordinary weights, which base.quantisation
    may quantise anew. The same file gives the same folder on every machine: dequantisation is defined bit
    by bit by the format, and is computed in float32.

    Args:
        file: the GGUF file; of a model in several files, all of them must be joined first.
        folder: where to write; must not exist or be empty. Nothing is left there after an error.
        dtype: type of the written weights.

    Raises:
        BaseModelError: no GGUF file, an architecture that transformers cannot read from GGUF, weights
            missing from the file, or a folder that holds something.
        ConfigError: the folder cannot be written.
    """
    _check(file, folder)
    prepare()
    with whole_folder(folder) as place:
        architecture, parameters = _write(file, place, dtype)
        sha256 = content_hash(place)
    return ImportedBase(folder, architecture, parameters, sha256)


def _check(file: Path, folder: Path) -> None:
    if not file.is_file():
        raise BaseModelError(f"{file} is no file; give a GGUF file")
    with file.open("rb") as handle:
        if handle.read(len(_MAGIC)) != _MAGIC:
            raise BaseModelError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BaseModelError(f"{folder} exists and is not empty; give a new folder")
    if find_spec("gguf") is None:
        raise BaseModelError(
            "reading GGUF needs the package gguf; install it with: pip install 'fedpeft[gguf]'"
        )


def _write(file: Path, place: Path, dtype: str) -> tuple[str, int]:
    """Load, rebuild without the marks of GGUF and save; gives architecture and number of parameters."""
    import torch

    loaded, tokenizer = _load(file)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = ""
    weights = loaded.state_dict()
    with torch.device("meta"):
        model: Any = type(loaded)(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model = model.to(getattr(torch, dtype))
    with quiet():
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(config.model_type), int(model.num_parameters())


def _load(file: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    try:
        with offline(), quiet(), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress bars
            model, info = auto.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # whatever a foreign file provokes becomes one line
        cause = first_line(error)
    else:
        missing = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
        if not missing:
            return model, tokenizer
        cause = f"{missing[0]!r} is missing or of another shape"
    raise BaseModelError(f"{file} cannot be read as a model by transformers: {cause}")
