"""Text files: compression, encoding, and the rows of JSON lines and JSON arrays."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedpeft.errors import DataError
from fedpeft.extras import needs
from fedpeft.foreign_files import kind_by_content

Row = dict[str, Any]
"""Columns of a row by name; a value that is a `DataError` is of a column that cannot be used."""

DOUBLE = "stands twice"
UTF8 = "utf-8"


def _open_zstandard(path: Path) -> Any:
    with needs("datasets", "a file compressed with Zstandard"):
        import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
COMPRESSED = tuple(_OPENERS)
"""Endings of compressed text files, after the ending of their format."""

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SAMPLE = 1000
"""Bytes at the beginning of a file by which its encoding is guessed."""
_SPACE = re.compile(r"[ \t\r\n]*")


def uncompressed(path: Path) -> Path:
    """The name of a file without the ending of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def read_text(path: Path, encoding: str = UTF8) -> str:
    """A file as text; bytes that are no text become what `check_text` finds in the rows that hold them.

    Raises:
        DataError: it cannot be read or decompressed, is no text, or is as a whole of another encoding.
    """
    raw = _read_bytes(path)
    if kind := kind_by_content(raw):
        raise DataError(f"{path} is {kind}")
    if (likely := _wide(raw, encoding)) and likely != encoding:
        raise DataError(f"{path} cannot be read as {_words(encoding)}: it is {likely}; {_setting(likely)}")
    try:
        return raw.decode("utf-8-sig" if encoding == UTF8 else encoding, "surrogateescape")
    except UnicodeError:
        pass  # that error would carry the text
    raise DataError(f"{path} cannot be read as {_words(encoding)}; {_setting(_likely(raw))}")


def _wide(raw: bytes, encoding: str) -> str | None:
    """The likely encoding where either it or the one that was asked for has two or four bytes a character."""
    sample, wide = raw[:_SAMPLE], encoding.startswith(("utf-16", "utf-32"))
    zeros = sample.count(0)
    if wide and not zeros and _likely(raw) == UTF8:
        return UTF8
    if wide or encoding != UTF8:
        return None
    if mark := next((name for mark, name in _BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None):
        return mark
    for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
        if zeros > len(sample) // 4 and sample[first::2].count(0) > 0.9 * zeros:
            return name
    return None


def is_misread(text: str, encoding: str) -> bool:
    """Whether a text that was read in another encoding is rather UTF-8."""
    if encoding == UTF8 or text.isascii():
        return False
    try:
        text.encode(encoding, "surrogateescape").decode(UTF8)
    except UnicodeError:
        return False
    return True


def _read_bytes(path: Path) -> bytes:
    try:
        with _OPENERS.get(path.suffix.lower(), lambda name: name.open("rb"))(path) as file:
            return file.read()
    except PermissionError:
        cause = "permission denied; the user that runs fedpeft must be able to read it"
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = "it is cut off or no file of that compression; write it again"
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


def _whole_number(digits: str) -> int | DataError:
    try:
        return int(digits)
    except ValueError:  # Python reads no whole number of more than 4300 digits
        return DataError("is a number of too many digits; write it as text")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)


def read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Row | DataError]]:
    """A JSON object a line; a byte order mark may stand before any, as files that were joined have it."""
    # not splitlines: U+2028 and form feeds are allowed inside a JSON string
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), 1):
        if line := line.strip().removeprefix("\ufeff").lstrip():
            yield f"line {number}", _line(f"{path} line {number}", line)


def _line(where: str, line: str) -> Row | DataError:
    try:
        check_text(where, line)
    except DataError as error:
        return error
    value = parse_json(line)
    if isinstance(value, dict):
        return value
    return DataError(f"{where}: not a JSON object; each line must be one{_hint(line)}")


def _hint(line: str) -> str:
    """What is probably wrong with a line that is no JSON object."""
    hints = {
        "; a whole array is read with data.format = 'json'": line.startswith("["),
        "; it holds NUL bytes, as after a crash: write the file again": "\0" in line,
        "; JSON has double quotes alone": line.startswith("{'"),
        "; its object does not end on the line": line.startswith("{") and not line.rstrip(",").endswith("}"),
        "; leave out the comma after it": line.endswith(","),
    }
    return next((hint for hint, fits in hints.items() if fits), "")


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
    tables = [value for value in whole.values() if _is_table(value)] if isinstance(whole, dict) else []
    if len(tables) == 1:
        for number, row in enumerate(tables[0], 1):
            yield f"row {number}", row
    elif isinstance(whole, dict) and ("\n" in text.strip() or _is_nested(whole)):
        raise DataError(f"{path} is one JSON object; it must be an array of objects, or an object a line")
    else:
        yield from read_jsonl(path, text)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(item, dict) for item in value)


def _is_nested(whole: Row) -> bool:
    """Whether an object has neither texts nor numbers, as what `pandas` writes of a table by columns."""
    return all(isinstance(value, dict | list) for value in whole.values())


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
    if (rest := _after_space(text, at + 1)) < len(text):
        raise DataError(
            f"{path}: something stands after the end of its array{_line_of(text, rest)}; a file holds one"
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
