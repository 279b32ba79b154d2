"""Adapter files: any peft adapter folder as one small file, and back; without torch.

By default factors and changes become a few dozen levels per tensor (`fedpeft.packing.uniform_quantiser`),
about five and a half bits a value.
Changes can be ternarised instead, as ComPEFT does (Yadav et al., arXiv 2311.13171); what that costs
and what it does to the loss is measured in docs/adapter-files.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.packing.coding import code, decode, start_of
from fedpeft.packing.file_format import Claim, Header, Packed, Part, build, parse
from fedpeft.packing.peft_folder import AdapterFiles, Tensors, read_adapter, read_file, write_adapter
from fedpeft.packing.recipe import Recipe
from fedpeft.runstore.files import whole_folder, write_atomic, writing


@dataclass(frozen=True)
class PartInfo:
    """One part of a packed adapter.

    Attributes:
        codec: how its tensors are coded.
        setting: step, density, alpha or seed, in words.
        tensors: number of tensors.
        values: number of values.
        density: share of the values that differ from where training starts.
        bytes: length of its payload.
        bits_per_value: ``8 * bytes / values``.
        error: L2 error over L2 norm of what is coded, as measured by the packer.
    """

    codec: str
    setting: str
    tensors: int
    values: int
    density: float
    bytes: int
    bits_per_value: float
    error: float


@dataclass(frozen=True)
class PackInfo:
    """What a packed adapter holds.

    Attributes:
        peft_type: the adapter method, as peft names it.
        base_model: the base that the adapter's configuration names.
        dtype: float type of the weights on disk; of several that of most tensors.
        tensors: number of tensors.
        values: number of values.
        bytes_total: length of the file.
        bytes_header: configuration, names, magic and digest.
        bytes_source: length of the weights file that was packed.
        ratio: ``bytes_source / bytes_total``.
        parts: the parts.
        claim: held-out loss before and after, as the packer measured it; None: not measured.
    """

    peft_type: str
    base_model: str
    dtype: str
    tensors: int
    values: int
    bytes_total: int
    bytes_header: int
    bytes_source: int
    ratio: float
    parts: tuple[PartInfo, ...]
    claim: Claim | None

    def as_json(self) -> dict[str, Any]:
        """JSON values of all attributes."""
        return asdict(self) | {"claim": None if self.claim is None else self.claim.model_dump()}


def pack(folder: Path, out: Path, recipe: Recipe | None = None, claim: Claim | None = None) -> PackInfo:
    """Compress an adapter folder into one file; the file is read back before it is announced.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        out: the file to write, atomically.
        recipe: how; default: levels.
        claim: a measured loss to write into the header.

    Raises:
        ConfigError: the folder is not an adapter folder.
        ExchangeError: the tensors cannot be packed, or there are none.
    """
    return save(compress(read_adapter(folder), recipe or Recipe(), claim), out)


def compress(files: AdapterFiles, recipe: Recipe, claim: Claim | None = None) -> bytes:
    """The bytes of a packed adapter.

    Raises:
        ExchangeError: the tensors cannot be packed.
    """
    coded = code(files, recipe)
    header = Header(
        config=files.config,
        dtype=files.dtype,
        types={name: kind for name, kind in files.types.items() if kind != files.dtype} or None,
        bytes_source=files.bytes,
        parts=[part for part, _ in coded],
        claim=claim,
    )
    return build(header, [payload for _, payload in coded])


def save(data: bytes, out: Path) -> PackInfo:
    """Decode a packed adapter once more and write it, atomically.

    Raises:
        ExchangeError: the bytes are not a packed adapter.
    """
    facts = describe(parse(data, str(out)))
    with writing(out):
        write_atomic(out, data)
    return facts


def unpack(file: Path, out: Path) -> None:
    """Restore a packed adapter to a folder that plain peft loads, its weights of the type they had.

    Raises:
        ExchangeError: the file is not a packed adapter, or it is damaged.
        ConfigError: the file cannot be read.
    """
    packed = load(file)
    tensors = tensors_of(packed)
    with whole_folder(out) as made:
        write_adapter(made, packed.header.config, tensors, packed.header.float_types())


def load(file: Path) -> Packed:
    """A packed adapter whose digest and header are sound.

    Raises:
        ExchangeError: the file is not a packed adapter, or it is damaged.
        ConfigError: the file cannot be read.
    """
    return parse(read_file(file), str(file))


def tensors_of(packed: Packed) -> Tensors:
    """All tensors by name, float32 unless they are kept exactly.

    Raises:
        ExchangeError: a payload is not one of its part.
    """
    tensors: Tensors = {}
    for part, payload in zip(packed.header.parts, packed.payloads, strict=True):
        tensors |= decode(part, payload)
    return tensors


def info(file: Path) -> PackInfo:
    """What a packed adapter holds, after its digest and all of its content have been checked.

    Raises:
        ExchangeError: the file is not a packed adapter, or it is damaged.
        ConfigError: the file cannot be read.
    """
    return describe(load(file))


def describe(packed: Packed) -> PackInfo:
    """What a packed adapter holds; decodes every part.

    Raises:
        ExchangeError: a payload is not one of its part.
    """
    header = packed.header
    pairs = zip(header.parts, packed.payloads, strict=True)
    parts = tuple(_part_info(part, payload) for part, payload in pairs)
    return PackInfo(
        peft_type=str(header.config.get("peft_type")),
        base_model=str(header.config.get("base_model_name_or_path")),
        dtype=header.dtype,
        tensors=sum(part.tensors for part in parts),
        values=sum(part.values for part in parts),
        bytes_total=packed.bytes_total,
        bytes_header=packed.bytes_total - sum(part.bytes for part in parts),
        bytes_source=header.bytes_source,
        ratio=header.bytes_source / packed.bytes_total,
        parts=parts,
        claim=header.claim,
    )


def _part_info(part: Part, payload: bytes) -> PartInfo:
    decoded = decode(part, payload)
    moved = sum(int(np.count_nonzero(value != start_of(name))) for name, value in decoded.items())
    values = part.values
    return PartInfo(
        codec=part.codec,
        setting=setting(part),
        tensors=len(part.tensors),
        values=values,
        density=moved / values if values else 0.0,
        bytes=part.bytes,
        bits_per_value=8 * part.bytes / values if values else 0.0,
        error=part.error,
    )


def setting(part: Part) -> str:
    """How a part was coded, in words."""
    numbers = {"step": part.step, "density": part.density, "alpha": part.alpha, "seed": part.seed}
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items() if value is not None)
