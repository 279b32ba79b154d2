"""Reading and writing adapter folders as plain peft does, without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange.codecs.base import codec_named
from fedpeft.exchange.layout import Layout
from fedpeft.foreign_files import kind_of_file
from fedpeft.runstore.files import write_atomic

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

Array = NDArray[Any]
Tensors = dict[str, Array]
FloatType = Literal["F32", "F16", "BF16"]

_FLOATS = ("F32", "F16", "BF16")
_LARGEST: dict[str, float] = {"F16": 65504.0, "BF16": 3.3895313892515355e38}
"""Where a float type of 16 bits ends: what rounding put beyond is written as this."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHERS = {
    "config.json": "it holds a whole model and no adapter: give it as the base",
    "adapters.safetensors": "it holds an adapter of MLX: convert it to peft's format",
    "pytorch_lora_weights.safetensors": "it holds a LoRA of diffusers, for images: adapters of language "
    "models are taken",
}
"""What folders hold that are no adapters of peft, by a file that tells."""

MOST_NESTED = 64
"""Deepest nesting of an adapter's configuration; peft's own is below 6."""
MOST_AXES = 8
"""Of a tensor in an adapter; a kernel of three dimensions has 5."""

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
WIDTHS = {kind: np.dtype(name).itemsize for kind, name in EXACT_TYPES.items()} | {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
}
"""Bytes of a value of each type."""


@dataclass(frozen=True)
class AdapterFiles:
    """What an adapter folder holds.

    Attributes:
        config: the object in ``adapter_config.json``.
        tensors: by name; float32 for every float type of at most 32 bits, all finite.
        types: the float type on disk of each of those.
        bytes: length of the weights file.
    """

    config: dict[str, Any]
    tensors: Tensors
    types: dict[str, FloatType]
    bytes: int

    @cached_property
    def dtype(self) -> FloatType:
        """The float type that most tensors have on disk; of equally many the first in the alphabet."""
        counts = Counter[FloatType](self.types.values())
        return max(sorted(counts), key=lambda kind: counts[kind]) if counts else "F32"


def read_adapter(folder: Path) -> AdapterFiles:
    """Read an adapter folder.

    Raises:
        ConfigError: the folder is not an adapter folder.
        ExchangeError: a tensor is of an unknown type or not finite, or there is none.
    """
    config = read_config(folder)
    check_weights(folder)
    data = read_file(folder / WEIGHTS_FILE)
    tensors, types = _tensors(data, str(folder))
    return AdapterFiles(config, tensors, types, len(data))


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are missing, in other files, or left out by a sharded optimiser.

    Raises:
        ConfigError: there is no file of weights, or it is no safetensors file.
        ExchangeError: it holds no tensor, or placeholders in place of some.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{str(folder)!r} has no {WEIGHTS_FILE}; {_instead(folder)}")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS_FILE, "numpy") as file:
            names: list[str] = list(file.keys())
            shapes: dict[str, list[int]] = {name: file.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError) as error:
        kind = kind_of_file(folder / WEIGHTS_FILE)
        cause = f"is {kind}" if kind else f"cannot be read: {error}"
        raise ConfigError(f"{WEIGHTS_FILE} of {str(folder)!r} {cause}") from None
    if wide := next((name for name, shape in shapes.items() if len(shape) > MOST_AXES), None):
        raise ExchangeError(f"{wide[:200]!r} has more than {MOST_AXES} axes: it is of no adapter")
    hint = "was it saved under DeepSpeed ZeRO-3 or FSDP? Gather the weights, then save it again"
    # ZeRO-3 leaves a vector without values in place of each tensor; peft itself saves none of that shape
    left_out = sorted(name for name, shape in shapes.items() if shape == [0])
    if left_out:
        count = f"{len(left_out)} of {len(shapes)} tensors"
        raise ExchangeError(
            f"{WEIGHTS_FILE} of {str(folder)!r} has no values for {count}, such as {left_out[0]!r}; {hint}"
        )
    if all(0 in shape for shape in shapes.values()):
        raise ExchangeError(f"{WEIGHTS_FILE} of {str(folder)!r} holds no values; {hint}")


def _instead(folder: Path) -> str:
    """What a folder without safetensors weights has, and what to do."""
    files = sorted(path.name for path in folder.glob("adapter_model*") if path.is_file())
    if other := next((what for file, what in _OTHERS.items() if (folder / file).is_file()), None):
        return other
    if (folder / WEIGHTS_FILE).is_symlink():
        return "its link leads nowhere: fetch the file"
    if (folder / WEIGHTS_FILE).exists():
        return "what has this name is no file"
    pickled = [name for name in files if name.endswith(_PICKLED)]
    if pickled:
        return f"{pickled[0]} is there: load it with peft and save it with safe_serialization=True"
    if files:
        return f"{files[0]} is there: save the adapter again in one file"
    return "give a folder that peft saved with safetensors"


def read_config(folder: Path) -> dict[str, Any]:
    """The object in ``adapter_config.json`` of a folder.

    Raises:
        ConfigError: it is missing or no JSON object.
    """
    if folder.is_file():
        raise ConfigError(f"{str(folder)!r} is a file; give the folder that peft saved")
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{str(folder)!r} has no {CONFIG_FILE}; {_adapters_below(folder)}")
    try:
        config = json.loads(read_file(folder / CONFIG_FILE), parse_constant=_refuse)
        # whoever prints, packs or saves it again gets what was read, and half a surrogate is no text
        json.dumps(config, ensure_ascii=False).encode()
        if not _is_flat(config, MOST_NESTED):
            raise ValueError(f"nested more than {MOST_NESTED} deep")
    except (ValueError, RecursionError) as error:
        config, cause = None, f" ({str(error)[:200]})"
    else:
        cause = ""
    if not isinstance(config, dict):
        raise ConfigError(f"{CONFIG_FILE} of {str(folder)!r} is not a JSON object{cause}")
    return dict(config)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON")


def _is_flat(value: Any, depth: int) -> bool:
    inner: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_flat(part, depth - 1) for part in inner)


def _adapters_below(folder: Path) -> str:
    """The adapters in a folder's folders, and what to do."""
    names = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
    if not names:
        others = (what for file, what in _OTHERS.items() if (folder / file).is_file())
        return next(others, "give a folder that peft saved")
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    what = "an adapter" if len(names) == 1 else "adapters"
    return f"it holds {what} in {shown}: give {str(folder / names[0])!r}{' or another' * (len(names) > 1)}"


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Tensors, types: Mapping[str, FloatType]
) -> None:
    """Write a folder that plain peft loads, the configuration last.

    Args:
        folder: where to; made if it is missing.
        config: for ``adapter_config.json``.
        tensors: float32 arrays are written in their type, others as they are.
        types: the float type of each on disk; float32 where none is given.
    """
    write_atomic(folder / WEIGHTS_FILE, safetensors_bytes(tensors, types))
    write_atomic(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def safetensors_bytes(tensors: Tensors, types: Mapping[str, FloatType]) -> bytes:
    """The safetensors file of these tensors, sorted by name: the same tensors give the same bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    # safetensors wants every tensor aligned to its type: the widest come first
    for name in sorted(tensors, key=lambda name: (-_width(tensors[name], types.get(name)), name)):
        kind, data = encoded(tensors[name], types.get(name, "F32"))
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


def _width(value: Array, dtype: FloatType | None) -> int:
    return value.itemsize if value.dtype != np.float32 else 2 if dtype in _LARGEST else 4


def encoded(value: Array, dtype: FloatType) -> tuple[str, bytes]:
    """Type and bytes of one tensor on disk."""
    if value.dtype != np.float32:
        kind = next(kind for kind, name in EXACT_TYPES.items() if np.dtype(name) == value.dtype)
        return kind, value.tobytes()
    if dtype in _LARGEST:
        value = np.clip(value, -_LARGEST[dtype], _LARGEST[dtype])
    if dtype == "BF16" and value.size:
        layout = Layout(("value",), ((value.size,),))
        codec = codec_named("dense-bf16")
        return dtype, codec.encode(codec.fit(value.reshape(-1), layout), layout)
    return dtype, value.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _tensors(data: bytes, folder: str) -> tuple[Tensors, dict[str, FloatType]]:
    """Arrays by name, and the types of those that were floats of at most 32 bits."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise ConfigError(f"{WEIGHTS_FILE} of {folder!r} cannot be read: {error}") from None
    tensors = {
        name: _array(name, entry["data"], str(entry["dtype"])).reshape(entry["shape"])
        for name, entry in entries
    }
    types: Any = {name: entry["dtype"] for name, entry in entries if entry["dtype"] in _FLOATS}
    return tensors, types


def _array(name: str, data: Any, dtype: str) -> Array:
    if dtype not in (*_FLOATS, *EXACT_TYPES):
        allowed = ", ".join([*_FLOATS, *EXACT_TYPES])
        raise ExchangeError(f"{name!r} is {dtype}; adapters of {allowed} can be packed")
    values = decoded(bytes(data), dtype)
    if dtype in _FLOATS and not np.isfinite(values).all():
        raise ExchangeError(f"{name!r} is not finite; an adapter with NaN or infinity is not packed")
    return values


def decoded(data: bytes, dtype: str) -> Array:
    """A vector from the bytes of a tensor on disk; float32 for floats of at most 32 bits."""
    if dtype in EXACT_TYPES:
        return np.frombuffer(data, EXACT_TYPES[dtype])
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
