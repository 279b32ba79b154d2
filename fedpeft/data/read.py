"""Reading records from JSONL, CSV, Parquet and Hugging Face datasets folders.

Every error names the file, the line or row and the rule; none repeats what stands in the record. What is
wrong with one row is an error of this row alone: a reader that must not tell of it leaves it out and goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedpeft.config.models import DataConfig
from fedpeft.data.readers import Reader, Row, Rows, checked, parse
from fedpeft.data.records import Record
from fedpeft.errors import DataError
from fedpeft.plugins import AUTO, READERS


def read_records(path: Path, cfg: DataConfig, faults: list[str] | None = None) -> list[Record]:
    """All records of one file or datasets folder.

    Columns are mapped by ``cfg``: prompt and completion, or messages for chats, and the partition column.

    Args:
        path: of the file or folder.
        cfg: format and columns.
        faults: None: a row that cannot be used is an error, and so is a file without records. A list: such
            rows are left out, each with its cause in the list, and there may be no records.

    Raises:
        DataError: no such file, an unknown format, no file of its format, a missing column, a bad row or no
            records.
    """
    records = list(_usable(path, cfg, _reader(path, cfg).rows(path), faults))
    if not records and faults is None:
        raise DataError(f"{path} holds no records; each organisation needs at least one")
    return records


def _usable(path: Path, cfg: DataConfig, rows: Rows, faults: list[str] | None) -> Iterator[Record]:
    for place, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            yield _record(path, place, row, cfg)
        except DataError as error:
            if faults is None:
                raise
            faults.append(str(error))


def read_written(path: Path, cfg: DataConfig, faults: list[str] | None = None) -> list[Record]:
    """Records as `write_records` wrote them, whatever the columns of the original files were.

    Raises:
        DataError: as `read_records`.
    """
    columns = {"format": "jsonl", "prompt": "prompt", "completion": "completion", "partition_column": None}
    chats = {"messages": cfg.messages and "messages", "person": cfg.person and "person"}
    return read_records(path, cfg.model_copy(update={**columns, **chats}), faults)


def read_folder(path: Path, cfg: DataConfig) -> dict[str, list[Record]]:
    """The records of each file of a folder, by the file's name without its ending, sorted by name.

    The file of ``cfg.test`` may lie in the folder; it is left out.

    Raises:
        DataError: the folder holds no data files, two of one name, or a file that cannot be read.
    """
    files: dict[str, Path] = {}
    test = Path(cfg.test).resolve() if cfg.test else None
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        if entry.resolve() == test:
            continue
        if _fitting(entry) is not None:
            if entry.stem in files:
                raise DataError(
                    f"{path} holds two data files named {entry.stem!r}; names are the organisations'"
                )
            files[entry.stem] = entry
    if not files:
        raise DataError(f"{path} is not a folder of data files; allowed are {_suffixes()}")
    return {name: read_records(file, cfg) for name, file in files.items()}


def is_record_source(path: Path) -> bool:
    """Whether a path is one data set (a file or a datasets folder), not a folder of them."""
    return path.is_file() or (path.is_dir() and _fitting(path) is not None)


def _fitting(path: Path) -> Reader | None:
    """The reader whose form a path has; of several the first."""
    return next((reader for _, reader in READERS.items() if reader.fits(path)), None)


def _suffixes() -> str:
    return ", ".join(sorted({suffix for _, reader in READERS.items() for suffix in reader.suffixes}))


def _reader(path: Path, cfg: DataConfig) -> Reader:
    if not path.exists():
        raise DataError(f"{path} does not exist; give a data file or a datasets folder")
    if cfg.format != AUTO:
        return READERS[cfg.format]
    if reader := _fitting(path):
        return reader
    if path.is_dir():
        raise DataError(f"{path} is a folder without dataset_info.json; give a file or save_to_disk's folder")
    names = ", ".join(READERS)
    raise DataError(f"{path}: cannot tell the format from {path.suffix!r}; set data.format to one of {names}")


def _record(path: Path, place: str, row: Row, cfg: DataConfig) -> Record:
    where = f"{path} {place}"
    group, person = _group(where, row, cfg), _person(where, row, cfg)
    if cfg.messages is not None:
        messages = _messages(where, _column(where, row, cfg.messages, "data.messages"))
        prompt = "\n".join(content for _, content in messages[:-1])
        return Record(prompt, messages[-1][1], group, messages, person)
    prompt = _string(where, cfg.prompt, _column(where, row, cfg.prompt, "data.prompt"))
    completion = _string(where, cfg.completion, _column(where, row, cfg.completion, "data.completion"))
    if not completion.strip():
        raise DataError(f"{where}: {cfg.completion!r} is empty; every record needs a completion")
    return Record(prompt, completion, group, person=person)


def _person(where: str, row: Row, cfg: DataConfig) -> str | None:
    if cfg.person is None:
        return None
    return _string(where, cfg.person, _column(where, row, cfg.person, "data.person"))


def _group(where: str, row: Row, cfg: DataConfig) -> str | None:
    if cfg.partition_column is None:
        return checked(where, row["group"]) if isinstance(row.get("group"), str) else None
    return _string(
        where, cfg.partition_column, _column(where, row, cfg.partition_column, "data.partition_column")
    )


def _column(where: str, row: Row, name: str, setting: str) -> Any:
    if name in row:
        return row[name]
    columns = [str(column) for column in row]
    near = difflib.get_close_matches(name, columns, n=3, cutoff=0.4) or columns[:8]
    raise DataError(
        f"{where}: no column {name!r} ({setting}); nearest: {', '.join(near) or 'none, the row is empty'}"
    )


def _string(where: str, name: str, value: Any) -> str:
    if isinstance(value, str):
        return checked(where, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: {name!r} is {_kind(value)}; it must be text or a whole number")


def _messages(where: str, value: Any) -> tuple[tuple[str, str], ...]:
    value = parse(value) if isinstance(value, str) else value
    pairs = [_message(item) for item in value] if isinstance(value, list) else []
    messages = tuple(pair for pair in pairs if pair is not None)
    if len(messages) != len(pairs) or len(messages) < 2:
        raise DataError(
            f"{where}: messages must be a list of at least two {{role, content}} objects with text"
        )
    if messages[-1][0] != "assistant" or not messages[-1][1].strip():
        raise DataError(f"{where}: the last message must come from the assistant and not be empty")
    for role, content in messages:
        checked(where, role + content)
    return messages


def _message(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, dict):
        return None
    role, content = item.get("role"), item.get("content")
    return (role, content) if isinstance(role, str) and isinstance(content, str) else None


def _kind(value: Any) -> str:
    return "empty (null)" if value is None else f"of type {type(value).__name__}"
