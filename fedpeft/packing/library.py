"""A folder of packed adapters, listed by their headers and decoded one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.errors import ConfigError, FedPeftError
from fedpeft.packing.file_format import Header, read_header
from fedpeft.packing.pack import load, tensors_of, unpack
from fedpeft.packing.peft_folder import Tensors

SUFFIX = ".fpa"
"""Usual ending of packed adapters' names; a file without it is read all the same."""


@dataclass(frozen=True)
class Entry:
    """A packed adapter as its header describes it; its digest has not been checked.

    Attributes:
        path: the file.
        base: the base that the adapter's configuration names.
        method: the adapter method, as peft names it.
        codecs: of its parts.
        values: number of values.
        bytes: length of the file.
        bytes_source: length of the weights file that was packed.
        loss_change: relative change of the held-out loss that the packer claims; None: not measured.
    """

    path: Path
    base: str
    method: str
    codecs: tuple[str, ...]
    values: int
    bytes: int
    bytes_source: int
    loss_change: float | None

    @property
    def ratio(self) -> float:
        """``bytes_source / bytes``."""
        return self.bytes_source / self.bytes

    def tensors(self) -> Tensors:
        """Read, check and decode the file.

        Raises:
            ExchangeError: the file is damaged.
            ConfigError: the file cannot be read.
        """
        return tensors_of(load(self.path))

    def unpack(self, out: Path) -> None:
        """Check the file and restore it to a folder that plain peft loads; errors as `tensors`."""
        unpack(self.path, out)


@dataclass(frozen=True)
class Refused:
    """A file that is no packed adapter, or one whose header is damaged."""

    path: Path
    cause: str


class Library(Mapping[str, Entry]):
    """The packed adapters in a folder, by name (without ``.fpa``).

    Opening reads headers only. A file that cannot be read as a packed adapter is in ``refused`` with its
    cause. Subfolders and hidden files are left out.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{str(folder)!r} is no folder; give one with packed adapters")
        self._entries: dict[str, Entry] = {}
        refused: list[Refused] = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not path.is_file():
                continue
            try:
                header, size = read_header(path)
            except FedPeftError as error:
                refused.append(Refused(path, str(error)))
            else:
                short = path.name.removesuffix(SUFFIX)
                self._entries[path.name if short in self._entries else short] = _entry(path, header, size)
        self.refused = tuple(refused)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def by_base(self) -> dict[str, dict[str, Entry]]:
        """Entries by the base they are for, both sorted by name."""
        groups: dict[str, dict[str, Entry]] = {}
        for name, entry in self.items():
            groups.setdefault(entry.base, {})[name] = entry
        return dict(sorted(groups.items()))


def _entry(path: Path, header: Header, size: int) -> Entry:
    return Entry(
        path=path,
        base=str(header.config.get("base_model_name_or_path")),
        method=str(header.config.get("peft_type")),
        codecs=tuple(part.codec for part in header.parts),
        values=sum(part.values for part in header.parts),
        bytes=size,
        bytes_source=header.bytes_source,
        loss_change=None if header.claim is None else header.claim.change,
    )
