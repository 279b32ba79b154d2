"""The file format of packed adapters, read as hostile bytes.

::

    magic 89 46 50 41 | version 1 | header length u32 | header (zlib, JSON)
    dense part | ternary part | SHA-256 of all before

The header names the tensors, so that the file describes itself; memory is bounded by the file's length.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from fedpeft.errors import ExchangeError
from fedpeft.exchange.codecs import codec_named
from fedpeft.exchange.layout import FloatVector, Layout

Tensors = dict[str, FloatVector]
DenseCodec = Literal["dense-fp32", "dense-bf16", "int8"]
Shape = Annotated[list[PositiveInt], Field(max_length=8)]

_MAGIC = b"\x89FPA\x01"
_DIGEST_BYTES = 32
_MAX_HEADER = 16 << 20
_FREE_VALUES = 16 << 20
_VALUES_PER_BYTE = 8192  # a file may not claim more values than 16 Mi plus this many per byte of it
_STARTS = {"lora_B": 0.0, "lora_embedding_A": 0.0, "miss_block": 0.0, "ia3_l": 1.0}


class Header(BaseModel):
    """The JSON header; hostile until validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    config: dict[str, Any]
    dense_codec: DenseCodec
    dense: dict[str, Shape]
    ternary: dict[str, Shape]
    bytes_source: NonNegativeInt
    ternary_error: NonNegativeFloat
    dense_error: NonNegativeFloat


@dataclass(frozen=True)
class Packed:
    """A decoded file: the header, the tensors of both parts, and lengths in bytes."""

    header: Header
    dense: Tensors
    ternary: Tensors
    bytes_total: int
    bytes_dense: int
    bytes_ternary: int


def start_of(name: str) -> float | None:
    """Value at which training of this tensor starts; None where it is random or not known."""
    return next((value for part, value in _STARTS.items() if part in name.split(".")), None)


def build(header: Header, dense: bytes, ternary: bytes) -> bytes:
    """The bytes of a file."""
    head = zlib.compress(header.model_dump_json().encode(), 9)
    body = _MAGIC + struct.pack("<I", len(head)) + head + dense + ternary
    return body + hashlib.sha256(body).digest()


def parse(data: bytes, name: str) -> Packed:
    """Check and decode a file; memory is bounded by its length.

    Args:
        data: the bytes.
        name: how messages call them.

    Raises:
        ExchangeError: the bytes are not a packed adapter, or they are damaged.
    """
    start = len(_MAGIC) + 4
    if len(data) < start + _DIGEST_BYTES or not data.startswith(_MAGIC):
        raise ExchangeError(f"{name!r} is not a packed adapter of a version that this fedpeft reads")
    body = data[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-_DIGEST_BYTES:]:
        raise ExchangeError(f"{name!r} is damaged: its SHA-256 does not match; copy it again")
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    if start + length > len(body):
        raise ExchangeError(f"{name!r} is damaged: its header is cut off")
    header = _read_header(body[start : start + length], name)
    dense, ternary = _layout(header.dense), _layout(header.ternary)
    if dense.size + ternary.size > _FREE_VALUES + _VALUES_PER_BYTE * len(data):
        raise ExchangeError(f"{name!r} claims {dense.size + ternary.size} values, too many for its length")
    codec = codec_named(header.dense_codec)
    middle = start + length + codec.max_bytes(dense)
    return Packed(
        header,
        dense.split(codec.decode(body[start + length : middle], dense).dense()),
        ternary.split(codec_named("ternary").decode(body[middle:], ternary).dense()),
        len(data),
        codec.max_bytes(dense),
        len(body) - middle,
    )


def _read_header(head: bytes, name: str) -> Header:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(head, _MAX_HEADER)
        if not stream.eof or stream.unused_data:
            raise ExchangeError(f"{name!r} has a header that is cut off or too long")
        header = Header.model_validate_json(text)
    except (zlib.error, ValidationError):
        raise ExchangeError(f"{name!r} has a header that is not one of a packed adapter") from None
    if not header.ternary.keys().isdisjoint(header.dense) or "__metadata__" in header.dense:
        raise ExchangeError(f"{name!r} names a tensor twice, or one that safetensors reserves")
    if any(start_of(tensor) is None for tensor in header.ternary):
        raise ExchangeError(f"{name!r} holds a ternary tensor whose start is not known")
    return header


def _layout(shapes: Mapping[str, Sequence[int]]) -> Layout:
    if sum(min(prod(shape), 1 << 62) for shape in shapes.values()) >= 1 << 40:
        raise ExchangeError("a packed adapter claims more than 2^40 values")
    return Layout(tuple(shapes), tuple(tuple(shape) for shape in shapes.values()))
