"""Adapter files: any peft adapter folder as one small file, and back; without torch.

What training started at zero is its own change, so it is sparsified and ternarised: ``lora_B``,
``lora_embedding_A``, ``miss_block``, and ``ia3_l`` less one. ComPEFT (Yadav et al., arXiv 2311.13171) does so
with all tensors of LoRA; but ``lora_A`` holds its random start, which is no change and which a threshold
would cut. It, and everything else (saved modules, magnitudes, factors of an unusual initialisation) stays
dense: in bfloat16, or in another dense codec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.adapters.packed import DenseCodec, Header, Packed, Tensors, build, parse, start_of
from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange.codecs import codec_named
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.plan import ExchangePlan
from fedpeft.exchange.ternary import Ternary
from fedpeft.exchange.transforms import Quantise, Sparsify, Ternarise, l2
from fedpeft.exchange.update import Update
from fedpeft.runstore.files import write_atomic

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_INITIALISATIONS = {
    "init_lora_weights": (True, "gaussian", "eva"),
    "init_weights": (True, "bat", "mini"),
    "init_ia3_weights": (True,),
}


@dataclass(frozen=True)
class PackInfo:
    """What a packed adapter holds.

    Attributes:
        peft_type: the adapter method, as peft names it.
        base_model: the base that the adapter's configuration names.
        tensors: number of tensors.
        ternary_values: values that are coded as sign, zero and scale.
        dense_values: all other values.
        dense_codec: how those are kept.
        density: share of the ternary values that is not zero.
        bytes_total: length of the file.
        bytes_header: configuration, names, magic and digest.
        bytes_dense: the dense part.
        bytes_ternary: the ternary part.
        bytes_source: length of the weights file that was packed.
        ratio: ``bytes_source / bytes_total``.
        ternary_error: L2 error of the ternary part over its L2 norm (of the change from its start).
        dense_error: the same for the dense part.
    """

    peft_type: str
    base_model: str
    tensors: int
    ternary_values: int
    dense_values: int
    dense_codec: str
    density: float
    bytes_total: int
    bytes_header: int
    bytes_dense: int
    bytes_ternary: int
    bytes_source: int
    ratio: float
    ternary_error: float
    dense_error: float


def pack(
    folder: Path,
    out: Path,
    density: float = 0.2,
    keep: Sequence[str] = (),
    dense_codec: DenseCodec = "dense-bf16",
) -> PackInfo:
    """Compress an adapter folder into one file; the file is read back before it is announced.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: the file to write, atomically.
        density: share of the ternary values that is kept, above 0 and at most 1.
        keep: tensors whose name contains one of these stay dense.
        dense_codec: how the dense part is kept: exactly, in 16 bits or in 8 bits per value.

    Raises:
        ConfigError: the folder is not an adapter folder.
        ExchangeError: the tensors cannot be packed, or the density is out of range.
    """
    config, tensors, size = _read_folder(folder)
    chosen = {name for name in _changes(config, tensors) if not any(part in name for part in keep)}
    changes = {
        name: value - np.float32(start_of(name) or 0) for name, value in tensors.items() if name in chosen
    }
    others = {name: value for name, value in tensors.items() if name not in chosen}
    rounding = () if dense_codec == "dense-fp32" else (Quantise(codec_named(dense_codec)),)
    coded, ternary, ternary_error = _coded(changes, ExchangePlan((Sparsify(density), Ternarise()), Ternary()))
    rounded, dense, dense_error = _coded(others, ExchangePlan(rounding, codec_named(dense_codec)))
    header = Header(
        config=config,
        dense_codec=dense_codec,
        dense={name: list(shape) for name, shape in zip(rounded.names, rounded.shapes, strict=True)},
        ternary={name: list(shape) for name, shape in zip(coded.names, coded.shapes, strict=True)},
        bytes_source=size,
        ternary_error=ternary_error,
        dense_error=dense_error,
    )
    data = build(header, dense, ternary)
    facts = _info(parse(data, str(out)))
    write_atomic(out, data)
    return facts


def unpack(file: Path, out: Path) -> None:
    """Restore a packed adapter to a folder that plain peft loads; weights are written as float32.

    Raises:
        ExchangeError: the file is not a packed adapter, or it is damaged.
        ConfigError: the file cannot be read.
    """
    from safetensors.numpy import save

    packed = parse(_read(file), str(file))
    tensors = packed.dense | {
        name: value + np.float32(start_of(name) or 0) for name, value in packed.ternary.items()
    }
    weights = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, {"format": "pt"})
    write_atomic(out / CONFIG_FILE, (json.dumps(packed.header.config, indent=2) + "\n").encode())
    write_atomic(out / WEIGHTS_FILE, weights)


def info(file: Path) -> PackInfo:
    """What a packed adapter holds, after its digest and all of its content have been checked.

    Raises:
        ExchangeError: the file is not a packed adapter, or it is damaged.
        ConfigError: the file cannot be read.
    """
    return _info(parse(_read(file), str(file)))


def _info(packed: Packed) -> PackInfo:
    ternary = sum(value.size for value in packed.ternary.values())
    dense = sum(value.size for value in packed.dense.values())
    nonzero = sum(int(np.count_nonzero(value)) for value in packed.ternary.values())
    return PackInfo(
        peft_type=str(packed.header.config.get("peft_type")),
        base_model=str(packed.header.config.get("base_model_name_or_path")),
        tensors=len(packed.ternary) + len(packed.dense),
        ternary_values=ternary,
        dense_values=dense,
        dense_codec=packed.header.dense_codec,
        density=nonzero / ternary if ternary else 0.0,
        bytes_total=packed.bytes_total,
        bytes_header=packed.bytes_total - packed.bytes_ternary - packed.bytes_dense,
        bytes_dense=packed.bytes_dense,
        bytes_ternary=packed.bytes_ternary,
        bytes_source=packed.header.bytes_source,
        ratio=packed.header.bytes_source / packed.bytes_total,
        ternary_error=packed.header.ternary_error,
        dense_error=packed.header.dense_error,
    )


def _changes(config: Mapping[str, Any], tensors: Tensors) -> list[str]:
    """Names of the tensors that are their own change."""
    for key, usual in _INITIALISATIONS.items():
        if key in config and config[key] not in usual:
            return []
    return [name for name in tensors if start_of(name) is not None]


def _coded(tensors: Tensors, plan: ExchangePlan) -> tuple[Layout, bytes, float]:
    """Layout, payload and relative error of one part."""
    layout = Layout.of(tensors)
    values = layout.flatten(tensors)
    fitted = plan.run(Update(layout, values, round=0, steps=0), {})[0].values
    norm = l2(values)
    payload = plan.codec.encode(fitted, layout)
    return layout, payload, l2(values - fitted) / norm if norm else 0.0


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None


def _read_folder(folder: Path) -> tuple[dict[str, Any], Tensors, int]:
    """Configuration, float32 tensors and length of the weights file."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{str(folder)!r} has no {name}; give a folder that peft saved with safetensors"
            )
    try:
        config = json.loads(_read(folder / CONFIG_FILE))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{CONFIG_FILE} of {str(folder)!r} is not a JSON object")
    data = _read(folder / WEIGHTS_FILE)
    return config, _tensors(data, str(folder)), len(data)


def _tensors(data: bytes, folder: str) -> Tensors:
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise ConfigError(f"{WEIGHTS_FILE} of {folder!r} cannot be read: {error}") from None
    return {name: _float32(name, entry).reshape(entry["shape"]) for name, entry in entries}


def _float32(name: str, entry: Mapping[str, Any]) -> FloatVector:
    data, dtype = bytes(entry["data"]), entry["dtype"]
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in ("F16", "F32"):
        raise ExchangeError(f"{name!r} is {dtype}; adapters of F32, F16 and BF16 can be packed")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
