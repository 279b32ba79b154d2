"""Text files: compression, encoding, and the rows of JSON lines, JSON arrays and delimited tables."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError

Row = dict[str, Any]
"""Columns of a row by name; a value that is a `DataError` is of a column that cannot be used."""

DOUBLE = "stands twice"
UTF8 = "utf-8"
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = tuple(_OPENERS)
"""Endings of compressed text files, after the ending of their format."""

_DELIMITERS = ",;\t|"
_LARGEST_FIELD = 2**31 - 1
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SPACE = re.compile(r"[ \t\r\n]*")


def uncompressed(path: Path) -> Path:
    """The name of a file without the ending of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def read_text(path: Path, encoding: str = UTF8) -> str:
    """A file as text; bytes that are no text become what `check_text` finds in the rows that hold them.

    Raises:
        DataError: it cannot be read or decompressed, or is as a whole of another encoding.
    """
    raw = _read_bytes(path)
    mark = _BYTE_ORDER_MARKS.get(raw[:2])
    if mark and encoding == UTF8:
        raise DataError(f"{path} cannot be read as {_words(encoding)}: it is {mark}; {_setting(mark)}")
    try:
        return raw.decode("utf-8-sig" if encoding == UTF8 else encoding, "surrogateescape")
    except UnicodeError:
        pass  # that error would carry the text
    raise DataError(f"{path} cannot be read as {_words(encoding)}; {_setting(_likely(raw))}")


def _read_bytes(path: Path) -> bytes:
    try:
        with _OPENERS.get(path.suffix.lower(), lambda name: name.open("rb"))(path) as file:
            return file.read()
    except PermissionError:
        cause = "permission denied; the user that runs fedpeft must be able to read it"
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = "is cut off or is no file of that compression; write it again"
        cause = kind if path.suffix.lower() in COMPRESSED else type(error).__name__
    raise DataError(f"{path} cannot be read: {cause}")


def _words(encoding: str) -> str:
    return f"{encoding.upper()} text"


def _setting(encoding: str) -> str:
    return f"convert it, or set data.encoding = '{encoding}' (node data add: --encoding {encoding})"


def _likely(raw: bytes) -> str:
    """The encoding that bytes are probably of, which are not of the one that was tried."""
    for encoding in (UTF8, "cp1252"):
        try:
            raw.decode(encoding)
        except UnicodeError:
            continue
        return encoding
    return "latin-1"


def check_text(where: str, text: str) -> None:
    """Refuse bytes that were not of the file's encoding, and halves of surrogate pairs.

    Such text cannot be written down or tokenised.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        pass  # that error would carry the text
    else:
        return
    halves = [code for code in map(ord, text) if 0xD800 <= code < 0xE000]
    if all(0xDC80 <= code <= 0xDCFF for code in halves):
        likely = _likely(text.encode(UTF8, "surrogateescape"))
        raise DataError(f"{where} holds bytes that are not in its encoding; {_setting(likely)}")
    raise DataError(
        f"{where} holds half of a surrogate pair, as of an emoji that was cut in two; repair the line or "
        "leave it out"
    )


def parse_json(text: str) -> Any:
    """The JSON value, or None; the parser's own error would carry the text.

    A name that stands twice in an object has a `DataError` as its value.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        row |= {name: DataError(DOUBLE) for name in row if names.count(name) > 1}
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Row | DataError]]:
    """A JSON object a line."""
    # not splitlines: U+2028 and form feeds are allowed inside a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _line(f"{path} line {number}", line)


def _line(where: str, line: str) -> Row | DataError:
    try:
        check_text(where, line)
    except DataError as error:
        return error
    value = parse_json(line)
    if isinstance(value, dict):
        return value
    array = "; a whole array is read with data.format = 'json'" if line.lstrip().startswith("[") else ""
    return DataError(f"{where}: not a JSON object; each line must be one{array}")


def read_json(path: Path, text: str) -> Iterator[tuple[str, Row | DataError]]:
    """An array of objects, alone or as the one list in an object; or an object a line after all.

    Raises:
        DataError: something else, or an array that is broken at some row, as the rows after it are lost.
    """
    start = _after_space(text, 0)
    if text[start : start + 1] == "[":
        yield from _array(path, text, start + 1)
        return
    whole = parse_json(text)
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    if len(lists) == 1 and all(isinstance(item, dict) for item in lists[0]):
        for number, row in enumerate(lists[0], 1):
            yield f"row {number}", row
    elif isinstance(whole, dict) and "\n" in text.strip():
        raise DataError(f"{path} is one JSON object; it must be an array of objects, or an object a line")
    else:
        yield from read_jsonl(path, text)


def _array(path: Path, text: str, at: int) -> Iterator[tuple[str, Row | DataError]]:
    number, at = 0, _after_space(text, at)
    while text[at : at + 1] != "]":
        number += 1
        place = f"row {number}"
        value, end = _item(text, at)
        if end == at:
            raise DataError(
                f"{path} {place}{_line_of(text, at)} is broken, cut off or nested too deeply; repair it"
            )
        good = isinstance(value, dict)
        yield place, value if good else DataError(f"{path} {place}: not a JSON object; each item must be one")
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(
                f"{path} {place}{_line_of(text, at)}: the array is broken or cut off after it; repair it"
            )


def _item(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a place, and where it ends; the same place if there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at


def _line_of(text: str, at: int) -> str:
    return f" (line {text.count(chr(10), 0, at) + 1})"


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def read_csv(path: Path, text: str) -> Iterator[tuple[str, Row | DataError]]:
    """A table whose first row names the columns; the delimiter is the one that its names stand between.

    A column without a name is left out, and one whose name stands twice cannot be used.
    """
    text, delimiter = _delimiter(text)
    csv.field_size_limit(_LARGEST_FIELD)  # of the whole process, which a larger one harms nowhere
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while (row := _next_row(path, reader)) is not None:
        place = f"line {reader.line_num}"
        if isinstance(row, DataError):
            yield place, row
        elif header is None:
            header = _header(path, row)
        elif row and len(row) != len(header):
            names = {"\t": "a tab"}
            cause = f"{len(row)} fields, the header has {len(header)}; quote fields that hold "
            yield place, DataError(f"{path} {place}: {cause}{names.get(delimiter, repr(delimiter))}")
        elif row:
            cells: Row = {name: cell for name, cell in zip(header, row, strict=True) if name}
            doubles = [name for name in cells if header.count(name) > 1]
            yield place, cells | {name: DataError(DOUBLE) for name in doubles}


def _delimiter(text: str) -> tuple[str, str]:
    """The table, and what stands between its columns: as Excel's first line says, or the commonest."""
    first, _, rest = text.partition("\n")
    if excel := re.fullmatch(r'"?sep=(.)"?\r?', first):
        return rest, excel[1]
    names = re.sub(r'"[^"]*"', "", first)
    return text, max(_DELIMITERS, key=names.count)


def _next_row(path: Path, reader: Any) -> list[str] | DataError | None:
    """The next row; a broken one ends with its line. The reader's own error would carry the text."""
    try:
        return next(reader, None)
    except csv.Error:
        number = reader.line_num
    return DataError(f"{path} line {number}: not valid CSV; check its quotes")


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    check_text(f"{path} line 1", "".join(names))
    if not any(names):
        raise DataError(f"{path} line 1: no column has a name; the first line must name the columns")
    return names
