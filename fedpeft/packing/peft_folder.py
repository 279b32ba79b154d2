"""Reading and writing adapter folders as plain peft does, without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange.codecs.base import codec_named
from fedpeft.exchange.layout import Layout
from fedpeft.runstore.files import write_atomic

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

Array = NDArray[Any]
Tensors = dict[str, Array]
FloatType = Literal["F32", "F16", "BF16"]

EXACT_TYPES = {
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""Types of safetensors that are carried as they are, and what numpy calls them."""


@dataclass(frozen=True)
class AdapterFiles:
    """What an adapter folder holds.

    Attributes:
        config: the object in ``adapter_config.json``.
        tensors: by name; float32 for every float type of at most 32 bits, all finite.
        dtype: the float type on disk; F32 where there are several.
        bytes: length of the weights file.
    """

    config: dict[str, Any]
    tensors: Tensors
    dtype: FloatType
    bytes: int


def read_adapter(folder: Path) -> AdapterFiles:
    """Read an adapter folder.

    Raises:
        ConfigError: the folder is not an adapter folder.
        ExchangeError: a tensor is of an unknown type or not finite.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{str(folder)!r} has no {name}; give a folder that peft saved with safetensors"
            )
    config = read_config(folder)
    data = read_file(folder / WEIGHTS_FILE)
    tensors, types = _tensors(data, str(folder))
    floats = types - EXACT_TYPES.keys()
    dtype: Any = floats.pop() if len(floats) == 1 else "F32"
    return AdapterFiles(config, tensors, dtype, len(data))


def read_config(folder: Path) -> dict[str, Any]:
    """The object in ``adapter_config.json`` of a folder.

    Raises:
        ConfigError: it is missing or no JSON object.
    """
    try:
        config = json.loads(read_file(folder / CONFIG_FILE))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{CONFIG_FILE} of {str(folder)!r} is not a JSON object")
    return dict(config)


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Tensors, dtype: FloatType) -> None:
    """Write a folder that plain peft loads, the configuration last.

    Args:
        folder: where to; made if it is missing.
        config: for ``adapter_config.json``.
        tensors: float32 arrays are written as ``dtype``, others as they are.
        dtype: the float type on disk.
    """
    write_atomic(folder / WEIGHTS_FILE, safetensors_bytes(tensors, dtype))
    write_atomic(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def safetensors_bytes(tensors: Tensors, dtype: FloatType = "F32") -> bytes:
    """The safetensors file of these tensors, sorted by name: the same tensors give the same bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    # safetensors wants every tensor aligned to its type: the widest come first
    for name in sorted(tensors, key=lambda name: (-_width(tensors[name], dtype), name)):
        kind, data = _encoded(tensors[name], dtype)
        entries[name] = {
            "dtype": kind,
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + len(data)],
        }
        parts.append(data)
        end += len(data)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([struct.pack("<Q", len(head)), head, *parts])


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(read_file(path)).hexdigest()


def _width(value: Array, dtype: FloatType) -> int:
    return value.itemsize if value.dtype != np.float32 else 4 if dtype == "F32" else 2


def _encoded(value: Array, dtype: FloatType) -> tuple[str, bytes]:
    """Type and bytes of one tensor on disk."""
    if value.dtype != np.float32:
        kind = next(kind for kind, name in EXACT_TYPES.items() if np.dtype(name) == value.dtype)
        return kind, value.tobytes()
    if dtype == "BF16":
        layout = Layout(("value",), ((value.size,),))
        codec = codec_named("dense-bf16")
        return dtype, codec.encode(codec.fit(value.reshape(-1), layout), layout)
    return dtype, value.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _tensors(data: bytes, folder: str) -> tuple[Tensors, set[str]]:
    """Arrays by name, and the types that occur."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise ConfigError(f"{WEIGHTS_FILE} of {folder!r} cannot be read: {error}") from None
    tensors = {name: _array(name, entry).reshape(entry["shape"]) for name, entry in entries}
    return tensors, {str(entry["dtype"]) for _, entry in entries}


def _array(name: str, entry: Mapping[str, Any]) -> Array:
    data, dtype = bytes(entry["data"]), str(entry["dtype"])
    if dtype in EXACT_TYPES:
        return np.frombuffer(data, EXACT_TYPES[dtype])
    if dtype == "BF16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in ("F16", "F32"):
        values = np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
    else:
        allowed = ", ".join(["F32", "F16", "BF16", *EXACT_TYPES])
        raise ExchangeError(f"{name!r} is {dtype}; adapters of {allowed} can be packed")
    if not np.isfinite(values).all():
        raise ExchangeError(f"{name!r} is not finite; an adapter with NaN or infinity is not packed")
    return values
