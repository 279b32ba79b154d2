"""From a file or folder to rows, and from the columns of a row to a record.

`fedpeft.plugins.READERS` has the readers of rows by the name of ``data.format``. Every error names the file,
the line or row and the rule; none repeats the record's text. What is wrong with one row is an error
of this row alone: a reader that must not tell of it leaves it out and goes on.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from fedpeft.config.models import DataConfig
from fedpeft.config.template import COMPLETION, PROMPT, Template
from fedpeft.data.chats import PICTURES, joined, read_chat
from fedpeft.data.csv_files import read_csv
from fedpeft.data.records import FIELD, Notes, Record
from fedpeft.data.table_files import read_arrow, read_dataset, read_parquet, unread
from fedpeft.data.text_files import (
    COMPRESSED,
    check_text,
    is_misread,
    read_json,
    read_jsonl,
    read_text,
    uncompressed,
)
from fedpeft.errors import DataError
from fedpeft.foreign_files import kind_by_ending
from fedpeft.plugins import AUTO, READERS

Row = Mapping[str, Any]
Rows = Iterable[tuple[str, Row | DataError | str]]
"""Place and content of each row, or why it has none; a text is a note on the whole."""

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-_.]|$)", re.IGNORECASE)
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "state.json")
"""Files that describe data and hold none."""
_LONGEST_NAME, _MOST_WORDS = 32, 3
"""Of a column's name that an error repeats: the first line of a file may be a record, and name no columns."""
_HIDDEN = (".", "~")
"""First characters of files that systems and office programs leave beside data."""
_CHATS = ("messages", "conversations", "conversation")
"""Columns that chats usually have."""


@dataclass(frozen=True)
class Reader:
    """One format of files.

    Attributes:
        rows: the rows of a file or folder, from its path. What is wrong with the whole raises `DataError`,
            an error of one row is returned in its place; neither carries text of the data.
        suffixes: endings of file names, in lower case, by which ``data.format = "auto"`` knows the format.
        inner_files: names of files that a folder of this format holds one of.
        text_rows: in place of ``rows``: the rows of a text file, from its path and its text. Compression
            and encoding (``data.encoding``) are then seen to.
    """

    rows: Callable[[Path], Rows] | None = None
    suffixes: tuple[str, ...] = ()
    inner_files: tuple[str, ...] = ()
    text_rows: Callable[[Path, str], Rows] | None = None

    def fits(self, path: Path) -> bool:
        """Whether a path has the form of the format."""
        if path.is_dir():
            return any((path / name).exists() for name in self.inner_files)
        name = uncompressed(path) if self.text_rows else path
        return name.suffix.lower() in self.suffixes

    def read(self, path: Path, encoding: str) -> Rows:
        """The rows of a path.

        Raises:
            DataError: the whole cannot be read.
        """
        if self.text_rows is not None:
            text = read_text(path, encoding)
            if is_misread(text, encoding):
                yield "", f"{path}: is UTF-8 as it seems, but is read as data.encoding = {encoding!r}"
            yield from self.text_rows(path, text)
        elif self.rows is not None:
            yield from self.rows(path)


def read_records(
    path: Path, cfg: DataConfig, faults: list[str] | None = None, notes: Notes | None = None
) -> list[Record]:
    """All records of one file or datasets folder, or of a folder of parts: files of one format.

    Columns are mapped by ``cfg``: those of its template, or messages for chats, and the partition column.

    Args:
        path: of the file or folder.
        cfg: format, encoding and columns.
        faults: None: a row that cannot be used is an error, and so is a file without records. A list: such
            rows are left out, each with its cause in the list, and there may be no records.
        notes: receives what a user should hear of data that can be used.

    Raises:
        DataError: no such file, an unknown format, no file of its format, a missing column, a bad row or no
            records.
    """
    notes = Notes() if notes is None else notes
    records: list[Record] = []
    for part in _parts(path, cfg, notes):
        rows = _reader(part, cfg).read(part, cfg.encoding)
        records += _usable(part, cfg, rows, faults, notes)
    if not records and faults is None:
        raise DataError(f"{path} holds no records; each organisation needs at least one")
    return records


def _usable(
    path: Path, cfg: DataConfig, rows: Rows, faults: list[str] | None, notes: Notes
) -> Iterator[Record]:
    for place, row in rows:
        try:
            if isinstance(row, str):
                notes.files.append(row)
                continue
            if isinstance(row, DataError):
                raise row
            yield _record(f"{path} {place}", row, cfg, notes)
        except DataError as error:
            if faults is None:
                raise
            faults.append(str(error))


def _parts(path: Path, cfg: DataConfig, notes: Notes) -> list[Path]:
    """The files of a folder of parts, or the path itself where it is no such folder."""
    wanted = None if cfg.format == AUTO else READERS[cfg.format]
    if not path.is_dir() or (_fitting(path) if wanted is None else wanted.inner_files):
        return [path]
    files = [file for file in sorted(path.rglob("*")) if _is_data(file, path, wanted)]
    kinds = {uncompressed(file).suffix.lower() for file in files}
    if len(kinds) != 1:
        contents = (
            f"holds files of several formats ({', '.join(sorted(kinds))})" if kinds else "holds no data files"
        )
        raise DataError(
            f"{path} {contents}; give a file, a folder of parts of one format, or save_to_disk's folder"
        )
    splits = {file: split for file in files if (split := _split_of(file.relative_to(path)))}
    others = sorted(set(splits.values()) - {"train"}, key=lambda name: (name != "test", name))
    if "train" not in splits.values() or not others:
        return files
    notes.files.append(unread(path, others, next(file for file in files if splits.get(file) == others[0])))
    return [file for file in files if splits.get(file, "train") == "train"]


def _split_of(place: Path) -> str | None:
    """The split that a file's name, or that of a folder it lies in, says."""
    folders = (re.fullmatch(_SPLIT, name) for name in place.parts[:-1])
    match = next(filter(None, (*folders, _SPLIT.match(place.name))), None)
    return match[1].lower() if match else None


def read_written(path: Path, cfg: DataConfig) -> list[Record]:
    """Records as `write_records` wrote them, whatever the columns of the original files were.

    Raises:
        DataError: as `read_records`.
    """
    return read_records(path, as_written(cfg))


def as_written(cfg: DataConfig) -> DataConfig:
    """The settings that read what `write_records` wrote of files that ``cfg`` reads."""
    columns = {"format": "jsonl", "prompt": "prompt", "completion": "completion", "partition_column": None}
    chats = {"messages": cfg.messages and "messages", "person": cfg.person and "person"}
    texts = {"encoding": "utf-8", "template": Template.parse(cfg.template).written()}
    return cfg.model_copy(update={**columns, **chats, **texts})


def read_folder(path: Path, cfg: DataConfig, notes: Notes | None = None) -> dict[str, list[Record]]:
    """The records of each file of a folder, by the file's name without its ending, sorted by name.

    A folder in it is one organisation too: what `datasets` saved, or parts. The file of ``cfg.test`` may lie
    in the folder; it is left out, and so are files that systems and programs hide there.

    Raises:
        DataError: the folder holds no data files, two of one name, the splits of one data set, or a file that
            cannot be read.
    """
    files: dict[str, Path] = {}
    test = Path(cfg.test).expanduser().resolve() if cfg.test else None
    unknown: list[str] = []
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        if entry.resolve() == test or entry.name.startswith(_HIDDEN) or entry.name in _DESCRIPTIONS:
            continue
        if not _is_organisation(entry):
            unknown.append(entry.name)
            continue
        name = entry.name if entry.is_dir() else uncompressed(entry).stem
        if not name.isprintable():
            raise DataError(f"{path} holds a data file named {name!r}; organisations need printable names")
        if name in files:
            raise DataError(f"{path} holds two data files named {name!r}; names are the organisations'")
        files[name] = entry
    if not files:
        raise DataError(f"{path} is not a folder of data files; allowed are {_suffixes()}")
    if unknown and notes is not None:
        notes.files.append(f"{path}: not read, as they are no data of a known format: {', '.join(unknown)}")
    if "train" in files and len(files) > 1 and all(map(_SPLIT.fullmatch, files)):
        raise DataError(
            f"{path} holds {', '.join(files)}: splits of one data set by their names, not organisations; set "
            "data.partition = 'iid' or another split, or name the files as the organisations"
        )
    return {name: read_records(file, cfg, notes=notes) for name, file in files.items()}


def _is_organisation(entry: Path) -> bool:
    """Whether an entry of a folder is an organisation's: a data file, a datasets folder, or one of parts."""
    if entry.is_dir() and _fitting(entry) is None:
        return any(_is_data(file, entry, None) for file in entry.iterdir())
    return _fitting(entry) is not None


def _is_data(file: Path, folder: Path, wanted: Reader | None) -> bool:
    """Whether a file in a folder is one of the wanted format, or of any, and not hidden."""
    names = file.relative_to(folder).parts
    if any(name.startswith(_HIDDEN) for name in names) or names[-1] in _DESCRIPTIONS or not file.is_file():
        return False
    return _fitting(file) is not None if wanted is None else wanted.fits(file)


def is_record_source(path: Path) -> bool:
    """Whether a path is one data set (a file or a datasets folder), not a folder of them."""
    return path.is_file() or (path.is_dir() and _fitting(path) is not None)


def _fitting(path: Path) -> Reader | None:
    """The reader whose form a path has; of several the first."""
    return next((reader for _, reader in READERS.items() if reader.fits(path)), None)


def _suffixes() -> str:
    endings = ", ".join(sorted({suffix for _, reader in READERS.items() for suffix in reader.suffixes}))
    return f"{endings}, text files also with {', '.join(COMPRESSED)}"


def _reader(path: Path, cfg: DataConfig) -> Reader:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a data file or a datasets folder")
    if cfg.format != AUTO:
        return READERS[cfg.format]
    if reader := _fitting(path):
        return reader
    if path.is_file() and (kind := kind_by_ending(uncompressed(path))):
        raise DataError(f"{path} is {kind}")
    names, ending = ", ".join(READERS), uncompressed(path).suffix
    raise DataError(f"{path}: cannot tell the format from {ending!r}; set data.format to one of {names}")


def _record(where: str, row: Row, cfg: DataConfig, notes: Notes) -> Record:
    """The record of a row.

    Args:
        where: file and row, for errors.
        row: columns by name.
        cfg: which columns are what.
        notes: receives what was left out.

    Raises:
        DataError: a column is missing, stands twice or holds what is no text; names row and column.
    """
    group, person = _group(where, row, cfg), _person(where, row, cfg)
    if cfg.messages is not None:
        return _chat(where, row, cfg.messages, notes, group, person)
    template = Template.parse(cfg.template)
    texts = [_field(where, row, name, cfg) for name in template.fields]
    if not texts[-1].strip():
        name = _source(template.fields[-1], cfg)[0]
        raise DataError(f"{where}: {name!r} is empty; every record needs a completion")
    if template.is_plain:
        return Record(texts[0], texts[1], group, person=person, place=where)
    prompt = template.prompt_of(tuple(texts[:-1]))
    fields = tuple(zip(template.fields, texts[:-1], strict=False))
    return Record(prompt, texts[-1], group, person=person, fields=fields, place=where)


def _chat(where: str, row: Row, column: str, notes: Notes, group: str | None, person: str | None) -> Record:
    tools = row.get("tools")
    if any(row.get(name) for name in PICTURES):
        notes.records["with pictures or sound beside their text, which are left out"] += 1
    columns = [column] if column in row else [name.strip() for name in column.split("+")]
    values = [_column(where, row, name, "data.messages") for name in columns]
    chat = read_chat(where, values[0] if len(values) == 1 else joined(where, values), tools)
    if chat.dropped:
        notes.records["turns after the assistant's last are left out"] += 1
    prompt = "\n".join(text for _, text in chat.pairs[:-1])
    return Record(prompt, chat.pairs[-1][1], group, chat.pairs, person, chat.turns, place=where)


def _source(name: str, cfg: DataConfig) -> tuple[str, str]:
    """The column of a template's field, and the setting that names it."""
    roles = {PROMPT: (cfg.prompt, "data.prompt"), COMPLETION: (cfg.completion, "data.completion")}
    return roles.get(name, (name, "data.template"))


def _field(where: str, row: Row, name: str, cfg: DataConfig) -> str:
    if FIELD + name in row:
        return _string(where, name, row[FIELD + name])
    column, setting = _source(name, cfg)
    value = _column(where, row, column, setting)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        raise DataError(
            f"{where}: {column!r} is a list of objects; chats are read with data.messages = {column!r}, and "
            f"those of two columns with data.messages = '{cfg.prompt}+{cfg.completion}'"
        )
    return _string(where, column, value)


def _person(where: str, row: Row, cfg: DataConfig) -> str | None:
    if cfg.person is None:
        return None
    return _string(where, cfg.person, _column(where, row, cfg.person, "data.person"))


def _group(where: str, row: Row, cfg: DataConfig) -> str | None:
    if cfg.partition_column is None:
        group = row.get("group")
        return _string(where, "group", group) if isinstance(group, str) else None
    column = cfg.partition_column
    return _string(where, column, _column(where, row, column, "data.partition_column"))


def _column(where: str, row: Row, name: str, setting: str) -> Any:
    if name in row:
        cell = row[name]
        if isinstance(cell, DataError):
            raise DataError(f"{where}: column {name!r} ({setting}) {cell}")
        return cell
    columns = [str(column).encode("ascii", "backslashreplace").decode() for column in row]
    names = [text for text in columns if len(text) <= _LONGEST_NAME and len(text.split()) <= _MOST_WORDS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    hint = f"nearest: {', '.join(near)}" if near else f"none of its {len(columns)} columns has a short name"
    chats = [column for column in _CHATS if column in columns and setting != "data.messages"]
    hint += f"; chats are read with data.messages = {chats[0]!r}" if chats else ""
    raise DataError(f"{where}: no column {name!r} ({setting}); {hint}")


def _string(where: str, name: str, value: Any) -> str:
    """A cell as text: as JSON writes truth values and numbers, dates as ISO 8601."""
    if isinstance(value, str):
        check_text(f"{where}: {name!r}", value)
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise DataError(
        f"{where}: {name!r} is {_kind(value)}; it must be text, a number, a date or true or false"
    )


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"empty ({'null' if value is None else 'NaN'})"
    if isinstance(value, float):
        return "infinite"
    return f"of type {type(value).__name__}"


JSONL = Reader(suffixes=(".jsonl", ".ndjson"), text_rows=read_jsonl)
JSON = Reader(suffixes=(".json",), text_rows=read_json)
CSV = Reader(suffixes=(".csv", ".tsv", ".tab"), text_rows=read_csv)
PARQUET = Reader(read_parquet, (".parquet", ".pq"))
ARROW = Reader(read_arrow, (".arrow", ".feather"))
DATASETS = Reader(read_dataset, inner_files=("dataset_info.json", "dataset_dict.json"))
