"""Rows of delimited tables."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.data.text_files import DOUBLE, Row, check_text
from fedpeft.errors import DataError

_DELIMITERS = ",;\t|"
_LARGEST_FIELD = 2**31 - 1
_BLANKS_BEFORE_QUOTES = re.compile(r'\s+".*"\s*', re.DOTALL)


def read_csv(path: Path, text: str) -> Iterator[tuple[str, Row | DataError]]:
    """A table whose first row names the columns; the delimiter is the one that its names stand between.

    A column without a name is left out, and one whose name stands twice cannot be used. Rows without a cell
    that holds something, as spreadsheets write them, are none.
    """
    table = _Table.of(text)
    csv.field_size_limit(_LARGEST_FIELD)  # of the whole process, which a larger one harms nowhere
    reader = table.reader()
    header: list[str] | None = None
    while (row := _next_row(path, reader, table.skipped)) is not None:
        place = f"line {reader.line_num + table.skipped}"
        if isinstance(row, DataError):
            yield place, row
        elif header is None and row:
            header = _header(f"{path} {place}", row)
        elif header is not None and any(row):
            yield place, _cells(f"{path} {place}", header, row, table.delimiter)


def _cells(where: str, header: list[str], row: list[str], delimiter: str) -> Row | DataError:
    if len(row) != len(header):
        names = {"\t": "a tab"}
        cause = f"{len(row)} fields, the header has {len(header)}; quote fields that hold "
        return DataError(f"{where}: {cause}{names.get(delimiter, repr(delimiter))}")
    if any(_BLANKS_BEFORE_QUOTES.fullmatch(cell) for cell in row):
        return DataError(f"{where}: blanks stand before a quote, which then is text; take the blanks out")
    cells: Row = {name: cell for name, cell in zip(header, row, strict=True) if name}
    doubles = [name for name in cells if header.count(name) > 1]
    return cells | {name: DataError(DOUBLE) for name in doubles}


@dataclass(frozen=True)
class _Table:
    """A delimited table and how it is written.

    Attributes:
        text: without Excel's first line, if it has one.
        delimiter: what stands between columns: as Excel's first line says, or the commonest of the header.
        skipped: lines before the text.
        blank_after: whether a blank follows each delimiter of the header; it is then no part of any cell.
    """

    text: str
    delimiter: str
    skipped: int
    blank_after: bool

    @classmethod
    def of(cls, text: str) -> _Table:
        excel = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
        rest = text[excel.end() :] if excel else text
        first = re.match(r"[\r\n ]*([^\r\n]*)", rest)
        names = re.sub(r'"[^"]*"', "", first[1] if first else "")
        delimiter = excel[1] if excel else max(_DELIMITERS, key=names.count)
        count = names.count(delimiter)
        return cls(rest, delimiter, int(excel is not None), 0 < count == names.count(f"{delimiter} "))

    def reader(self) -> Any:
        """The rows as the standard library reads them."""
        lines = io.StringIO(self.text, newline="")
        return csv.reader(lines, strict=True, delimiter=self.delimiter, skipinitialspace=self.blank_after)


def _next_row(path: Path, reader: Any, skipped: int) -> list[str] | DataError | None:
    """The next row; a broken one ends with its line. The reader's own error would carry the text."""
    try:
        return next(reader, None)
    except csv.Error:
        number = reader.line_num + skipped
    return DataError(f"{path} line {number}: not valid CSV; check its quotes")


def _header(where: str, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    check_text(where, "".join(names))
    if not any(names):
        raise DataError(f"{where}: no column has a name; the first line must name the columns")
    return names
