"""The file format of packed adapters, read as hostile bytes.

::

    magic 89 46 50 41 | version u8 | header length u32 | header (zlib, JSON)
    parts, each as long as the header says | SHA-256 of all before

The header names tensors, shapes and how each part is coded, so that the file describes itself, and can be
read alone: a library of files is listed without their payloads. Memory is bounded by the file's length.

Version 3 adds floats that are kept exactly, a float type for each tensor, and tensors without values. Files
that use none of it are written as version 2, which older releases read.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.exchange.layout import Layout
from fedpeft.packing.peft_folder import MOST_AXES, FloatType

PartCodec = Literal["levels", "ternary", "dense-fp32", "dense-bf16", "int8", "seed", "exact"]
Shape = Annotated[list[NonNegativeInt], Field(max_length=MOST_AXES)]
Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

DIGEST_BYTES = 32
MAGIC = b"\x89FPA\x02"
_MAGIC_3 = b"\x89FPA\x03"
_START = len(MAGIC) + 4
_MAX_HEADER = 4 << 20
_MAX_TEXT = 24 << 20  # names and shapes of at least 100,000 tensors
_MAX_PARTS = 8
_FREE_VALUES = 16 << 20
_VALUES_PER_BYTE = 512  # a file may not claim more values than 16 Mi plus this many per byte of it


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Part(_Strict):
    """Tensors that are coded alike.

    Attributes:
        codec: how; ``seed``: the values follow from a seed; ``exact``: the bytes as they are.
        tensors: shapes by name, sorted by name.
        bytes: length of the payload.
        error: L2 error over L2 norm of what is coded, as measured by the packer.
        step: of levels: share of a tensor's root mean square between two of them.
        density: of ternary: share of the values that was asked to be kept.
        alpha: of ternary as ComPEFT scales it: the magnitude over the standard deviation of all values.
        seed: of ``seed``: that of fedpeft's frozen ``lora_A``.
        sha256: of ``seed``: digest of the values that it must give, float32 in the order of the names.
        types: of ``exact``: the safetensors type of each tensor.
    """

    codec: PartCodec
    tensors: dict[str, Shape]
    bytes: NonNegativeInt
    error: NonNegativeFloat = 0.0
    step: PositiveFloat | None = None
    density: PositiveFloat | None = None
    alpha: PositiveFloat | None = None
    seed: int | None = None
    sha256: Hex | None = None
    types: dict[str, str] | None = None

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors."""
        return Layout(tuple(self.tensors), tuple(tuple(shape) for shape in self.tensors.values()))

    @property
    def values(self) -> int:
        """Number of values."""
        return sum(prod(shape) for shape in self.tensors.values())


class Claim(_Strict):
    """What the packer says to have measured on held-out records; no reader can check it without them.

    Attributes:
        records: number of records.
        records_sha256: digest of the file that held them.
        loss: held-out loss of the adapter before it was packed.
        packed_loss: held-out loss of what is unpacked.
    """

    records: PositiveInt
    records_sha256: Hex
    loss: NonNegativeFloat
    packed_loss: NonNegativeFloat

    @property
    def change(self) -> float:
        """Relative change of the loss."""
        return self.packed_loss / self.loss - 1 if self.loss else 0.0


class Header(_Strict):
    """The JSON header; hostile until validated.

    Attributes:
        config: the adapter's configuration.
        dtype: float type that the weights had on disk, and that unpacking writes.
        types: float types of tensors that had another one.
        bytes_source: length of the weights file that was packed.
        parts: the coded tensors, in the order of their payloads.
        claim: the measured loss, where it was measured.
    """

    config: dict[str, Any]
    dtype: FloatType
    types: dict[str, FloatType] | None = None
    bytes_source: NonNegativeInt
    parts: Annotated[list[Part], Field(max_length=_MAX_PARTS)]
    claim: Claim | None = None

    @property
    def magic(self) -> bytes:
        """First bytes of a file: of the oldest version that has all that this header uses."""
        kinds = {kind for part in self.parts for kind in (part.types or {}).values()}
        empty = any(0 in shape for part in self.parts for shape in part.tensors.values())
        return _MAGIC_3 if self.types or empty or kinds & set(get_args(FloatType)) else MAGIC

    def float_types(self) -> dict[str, FloatType]:
        """The float type of each tensor on disk."""
        types: dict[str, FloatType] = {name: self.dtype for part in self.parts for name in part.tensors}
        return types | (self.types or {})


@dataclass(frozen=True)
class Packed:
    """A file whose digest is right and whose header is sound; payloads are not decoded yet.

    Attributes:
        header: the header.
        payloads: bytes of each part.
        bytes_total: length of the file.
    """

    header: Header
    payloads: tuple[bytes, ...]
    bytes_total: int


def build(header: Header, payloads: Sequence[bytes]) -> bytes:
    """The bytes of a file."""
    head = zlib.compress(header.model_dump_json(exclude_none=True).encode(), 9)
    body = b"".join([header.magic, struct.pack("<I", len(head)), head, *payloads])
    return body + hashlib.sha256(body).digest()


def check_names(names: Collection[str]) -> None:
    """Refuse tensors whose names do not fit into a header, before anything is coded.

    Raises:
        ExchangeError: says how many there may be.
    """
    per_tensor = 40  # its shape, its type and the marks of JSON around them
    size = sum(len(name) + per_tensor for name in names)
    if size > _MAX_TEXT // 2:
        most = len(names) * (_MAX_TEXT // 2) // size
        raise ExchangeError(
            f"{len(names)} tensors are too many for one packed adapter: about {most} with such names fit; "
            "pack it in parts"
        )


def parse(data: bytes, name: str) -> Packed:
    """Check a file's digest and header; memory is bounded by its length.

    Args:
        data: the bytes.
        name: how messages call them.

    Raises:
        ExchangeError: the bytes are not a packed adapter, or they are damaged.
    """
    length = _header_length(data[:_START], len(data), name)
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise ExchangeError(f"{name!r} is damaged: its SHA-256 does not match; copy it again")
    header = _read_header(data[_START : _START + length], len(data), name)
    payloads: list[bytes] = []
    start = _START + length
    for part in header.parts:
        payloads.append(data[start : start + part.bytes])
        start += part.bytes
    return Packed(header, tuple(payloads), len(data))


def read_header(path: Path) -> tuple[Header, int]:
    """Header and length of a file, without its payload: the digest is not checked.

    Raises:
        ExchangeError: the file is not a packed adapter, or its header is damaged.
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _header_of(file, path.stat().st_size, str(path))
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _header_of(file: BinaryIO, size: int, name: str) -> tuple[Header, int]:
    length = _header_length(file.read(_START), size, name)
    return _read_header(file.read(length), size, name), size


def _header_length(start: bytes, size: int, name: str) -> int:
    """Length of the compressed header, which the file and a limit bound."""
    if len(start) < _START or not start.startswith((MAGIC, _MAGIC_3)):
        raise ExchangeError(f"{name!r} is not a packed adapter of a version that this fedpeft reads")
    (length,) = struct.unpack_from("<I", start, len(MAGIC))
    if _START + length + DIGEST_BYTES > size or length > _MAX_HEADER:
        raise ExchangeError(f"{name!r} is damaged: its header is cut off or too long")
    return length


def _read_header(head: bytes, size: int, name: str) -> Header:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(head, _MAX_TEXT)
        if not stream.eof or stream.unused_data:
            raise ExchangeError(f"{name!r} has a header that is cut off or too long")
        header = Header.model_validate_json(text)
    except (zlib.error, ValidationError, RecursionError):
        raise ExchangeError(f"{name!r} has a header that is not one of a packed adapter") from None
    _check_names(header, name)
    _check_sizes(header, size - len(head) - _START - DIGEST_BYTES, size, name)
    return header


def _check_names(header: Header, name: str) -> None:
    tensors = [tensor for part in header.parts for tensor in part.tensors]
    if len(set(tensors)) < len(tensors) or "__metadata__" in tensors:
        raise ExchangeError(f"{name!r} names a tensor twice, or one that safetensors reserves")
    for part in header.parts:
        if list(part.tensors) != sorted(part.tensors):
            raise ExchangeError(f"{name!r} has a header whose tensors are not sorted by name")
        if part.codec != "exact" and any(0 in shape for shape in part.tensors.values()):
            raise ExchangeError(f"{name!r} has a header with a tensor without values in a coded part")
        if (part.codec == "seed") != (part.seed is not None and part.sha256 is not None):
            raise ExchangeError(f"{name!r} has a header with a seed where none belongs, or without one")
        if (part.codec == "exact") != (part.types is not None and part.types.keys() == part.tensors.keys()):
            raise ExchangeError(f"{name!r} has a header with types where none belong, or without them")


def _check_sizes(header: Header, payload: int, size: int, name: str) -> None:
    shapes: list[Mapping[str, Sequence[int]]] = [part.tensors for part in header.parts]
    # products of hostile axes are large integers; cut them before they are added
    values = sum(min(prod(shape), 1 << 62) for part in shapes for shape in part.values())
    if values > _FREE_VALUES + _VALUES_PER_BYTE * size:
        raise ExchangeError(f"{name!r} claims {values} values, too many for its length")
    if sum(part.bytes for part in header.parts) != payload:
        raise ExchangeError(f"{name!r} claims parts of another length than it has")
