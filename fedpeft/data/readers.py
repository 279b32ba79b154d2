"""Readers: from a file or folder to rows, each with its place; columns are mapped to records in `read`.

`fedpeft.plugins.READERS` has them by the name of ``data.format``. No error repeats what stands in the data.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError
from fedpeft.extras import needs

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | DataError]]
"""Place and content of each row, or why it has none."""


@dataclass(frozen=True)
class Reader:
    """One format of files.

    Attributes:
        rows: the rows of a file or folder, from its path. What is wrong with the whole raises `DataError`,
            what is wrong with one row stands in its place; neither carries text of the data.
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


def _read_jsonl(path: Path) -> Rows:
    # not splitlines: U+2028 and form feeds may stand inside a JSON string
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"line {number}", _object(f"{path} line {number}", line)


def _object(where: str, line: str) -> Row | DataError:
    try:
        value = parse(checked(where, line))
    except DataError as error:
        return error
    if isinstance(value, dict):
        return value
    return DataError(f"{where}: not a JSON object; each line must be one")


def parse(line: str) -> Any:
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
    names = [checked(f"{path} line 1", name.strip()) for name in row]
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
    """A file as text; bytes that are no UTF-8 become what `_checked` finds in the rows that hold them."""
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        cause = type(error).__name__
    raise DataError(f"{path} cannot be read ({cause})")


def checked(where: str, text: str) -> str:
    """A text that can be written down: no half of a surrogate pair, and no bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return text
    raise DataError(f"{where} cannot be read as UTF-8 text; convert the file or set data.format")


JSONL = Reader(_read_jsonl, (".jsonl", ".ndjson"))
CSV = Reader(_read_csv, (".csv",))
PARQUET = Reader(_read_parquet, (".parquet", ".pq"))
DATASETS = Reader(_read_dataset, inner_files=("dataset_info.json", "dataset_dict.json"))
