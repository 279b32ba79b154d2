"""From a file or folder to rows, each with its place, and from the columns of a row to a record.

`fedpeft.plugins.READERS` has the readers of rows by the name of ``data.format``. Every error names the file,
the line or row and the rule; none repeats the record's text. What is wrong with one row is an error
of this row alone: a reader that must not tell of it leaves it out and goes on.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.config.models import DataConfig
from fedpeft.data.records import Record
from fedpeft.errors import DataError
from fedpeft.extras import needs
from fedpeft.plugins import AUTO, READERS

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | DataError]]
"""Place and content of each row, or why it has none."""


@dataclass(frozen=True)
class Reader:
    """One format of files.

    Attributes:
        rows: the rows of a file or folder, from its path. What is wrong with the whole raises `DataError`,
            an error of one row is returned in its place; neither carries text of the data.
        suffixes: endings of file names, in lower case, by which ``data.format = "auto"`` knows the format.
        inner_files: names of files that a folder of this format holds one of.
    """

    rows: Callable[[Path], Rows]
    suffixes: tuple[str, ...] = ()
    inner_files: tuple[str, ...] = ()

    def fits(self, path: Path) -> bool:
        """Whether a path has the form of the format."""
        if path.is_dir():
            return any((path / name).exists() for name in self.inner_files)
        return path.suffix.lower() in self.suffixes


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
    return cfg.model_copy(update={**columns, **chats})


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
        group = row.get("group")
        return _string(where, "group", group) if isinstance(group, str) else None
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
        _check_text(where, value)
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: {name!r} is {_kind(value)}; it must be text or a whole number")


def _messages(where: str, value: Any) -> tuple[tuple[str, str], ...]:
    value = _parse(value) if isinstance(value, str) else value
    pairs = [_message(item) for item in value] if isinstance(value, list) else []
    messages = tuple(pair for pair in pairs if pair is not None)
    if len(messages) != len(pairs) or len(messages) < 2:
        raise DataError(
            f"{where}: messages must be a list of at least two {{role, content}} objects with text"
        )
    if messages[-1][0] != "assistant" or not messages[-1][1].strip():
        raise DataError(f"{where}: the last message must come from the assistant and not be empty")
    for role, content in messages:
        _check_text(where, role + content)
    return messages


def _message(item: Any) -> tuple[str, str] | None:
    if not isinstance(item, dict):
        return None
    role, content = item.get("role"), item.get("content")
    return (role, content) if isinstance(role, str) and isinstance(content, str) else None


def _kind(value: Any) -> str:
    return "empty (null)" if value is None else f"of type {type(value).__name__}"


def _read_jsonl(path: Path) -> Rows:
    # not splitlines: U+2028 and form feeds are allowed inside a JSON string
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"line {number}", _object(f"{path} line {number}", line)


def _object(where: str, line: str) -> Row | DataError:
    try:
        _check_text(where, line)
    except DataError as error:
        return error
    value = _parse(line)
    if isinstance(value, dict):
        return value
    return DataError(f"{where}: not a JSON object; each line must be one")


def _parse(line: str) -> Any:
    """The JSON value, or None; the parser's own error would carry the text."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read_csv(path: Path) -> Rows:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    header: list[str] | None = None
    while (row := _next_csv(path, reader)) is not None:
        place = f"line {reader.line_num}"
        if isinstance(row, DataError):
            yield place, row
        elif header is None:
            header = _header(path, row)
        elif row and len(row) != len(header):
            cause = f"{len(row)} fields, the header has {len(header)}; quote fields that hold a comma"
            yield place, DataError(f"{path} {place}: {cause}")
        elif row:
            yield place, dict(zip(header, row, strict=True))


def _next_csv(path: Path, reader: Any) -> list[str] | DataError | None:
    """The next row; a broken one ends with its line. The reader's own error would carry the text."""
    try:
        return next(reader, None)
    except csv.Error:
        number, limit = reader.line_num, csv.field_size_limit()
    return DataError(
        f"{path} line {number}: not valid CSV; check its quotes, and fields above {limit} characters"
    )


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    _check_text(f"{path} line 1", "".join(names))
    if len(set(names)) != len(names) or "" in names:
        raise DataError(f"{path} line 1: column names must be unique and not empty")
    return names


def _read_parquet(path: Path) -> Rows:
    with needs("datasets", "a Parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        batches = list(pq.ParquetFile(path).iter_batches())
    except (pa.ArrowException, OSError) as error:
        cause = type(error).__name__
    else:
        yield from _numbered(path, (batch.slice(n, 1) for batch in batches for n in range(batch.num_rows)))
        return
    raise DataError(f"{path} is not a readable Parquet file ({cause}); write it again")


def _numbered(path: Path, rows: Iterable[Any]) -> Rows:
    """Rows of one row each; a value that Python has no form for (a date in year 0) spoils its own row."""
    for number, row in enumerate(rows, 1):
        place = f"row {number}"
        try:
            yield place, row.to_pylist()[0]
        except Exception as error:  # the error would carry the value
            yield place, DataError(f"{path} {place}: it cannot be read ({type(error).__name__})")


def _read_dataset(path: Path) -> Rows:
    with needs("datasets", "a folder saved by datasets"):
        import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # a broken folder fails in many ways; the text stays here
        cause = type(error).__name__
    else:
        if isinstance(data, datasets.DatasetDict):
            name = "train" if "train" in data else min(data)
            data = data[name]
        table = data.with_format("arrow")
        yield from _numbered(path, (table[n] for n in range(len(table))))
        return
    raise DataError(f"{path} is not a readable datasets folder ({cause}); write it with save_to_disk")


def _text(path: Path) -> str:
    """A file as text; bytes that are no UTF-8 become what `_check_text` finds in the rows that hold them."""
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        cause = type(error).__name__
    raise DataError(f"{path} cannot be read ({cause})")


def _check_text(where: str, text: str) -> None:
    """Refuse half of a surrogate pair, and bytes that were not UTF-8: such text cannot be written down."""
    try:
        text.encode()
    except UnicodeEncodeError:
        pass  # that error would carry the text
    else:
        return
    raise DataError(f"{where} cannot be read as UTF-8 text; convert the file or set data.format")


JSONL = Reader(_read_jsonl, (".jsonl", ".ndjson"))
CSV = Reader(_read_csv, (".csv",))
PARQUET = Reader(_read_parquet, (".parquet", ".pq"))
DATASETS = Reader(_read_dataset, inner_files=("dataset_info.json", "dataset_dict.json"))
