"""What a process of the service prints, kept in a file that stays small and that a terminal can show."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import IO

LARGEST_OUTPUT = 10_000_000
"""Bytes of a file of output; one older file of that size is kept beside it."""
LONGEST_LINE = 4096
"""Bytes of a line as it was printed; what comes after them is left out."""
CUT = b" ... (cut)"
_PRINTABLE = frozenset({0x09, *range(0x20, 0x7F)})


def keep_output(printed: IO[bytes], path: Path) -> threading.Thread:
    """Append what a pipe brings to a file, in a thread that ends with the pipe.

    Lines are cut, bytes that are no printable ASCII are written as hexadecimal escapes, and the file is
    bounded while the process runs. A disk that is full loses lines; the process never waits for it.
    """
    thread = threading.Thread(target=_keep, args=(printed, path), daemon=True, name="fedpeft-output")
    thread.start()
    return thread


def _keep(printed: IO[bytes], path: Path) -> None:
    with printed:
        while line := printed.readline(LONGEST_LINE):
            whole = line.endswith(b"\n")
            while not whole and (rest := printed.readline(LONGEST_LINE)):
                line, whole = line[:LONGEST_LINE] + rest[:1].replace(b"\n", b""), rest.endswith(b"\n")
            with contextlib.suppress(OSError):
                _append(path, shown(line))


def shown(line: bytes) -> bytes:
    """One line as it is kept: printable, of bounded length, with its end."""
    text = line.rstrip(b"\n")
    cut = CUT if len(text) > LONGEST_LINE else b""
    escaped = b"".join(
        bytes([byte]) if byte in _PRINTABLE else b"\\x%02x" % byte for byte in text[:LONGEST_LINE]
    )
    return escaped + cut + b"\n"


def _append(path: Path, line: bytes) -> None:
    if path.exists() and path.stat().st_size + len(line) > LARGEST_OUTPUT:
        path.replace(path.with_suffix(".1" + path.suffix))
    with path.open("ab") as output:
        output.write(line)
