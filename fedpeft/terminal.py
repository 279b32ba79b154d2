"""The door through which text reaches a terminal or a log: no stranger's text can act on either.

Names, causes, errors and settings of other parties end up in what operators read. Every process of ours
wraps its standard output and error once (`clean_output`); whatever is written through them, by whomever, is
cleaned there. What is drawn in colours goes to `drawing`, whose callers clean each text themselves.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TextIO

_ACTS = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of what is not seen but does something: controls, directions, line ends."""
_OURS = "\n\t"


def printable(text: object) -> str:
    r"""A text as one line in which nothing moves a cursor, starts a line or turns the direction of writing.

    >>> printable("a\x1b[2J\nb\u202e")
    'a?[2J b?'
    """
    words = str(text)
    return words if words.isprintable() else "".join(_seen(" " if c in _OURS else c) for c in words)


@contextmanager
def clean_output() -> Generator[None]:
    """Let standard output and error pass nothing that acts on a terminal, except line ends and tabs.

    They stay so where an error leaves the block: the interpreter still has to print it.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Door(stream) if hasattr(stream, "buffer") else stream for stream in before)
    try:
        yield
    except SystemExit:
        _restore(*before)
        raise
    _restore(*before)


def _restore(*before: TextIO) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
    sys.stdout, sys.stderr = before


def drawing(stream: TextIO) -> TextIO:
    """The unfiltered stream beneath, for tables and live views that draw with escape codes."""
    return stream.behind if isinstance(stream, _Door) else stream


class _Door(io.TextIOWrapper):
    """A text stream that cleans what is written; for other code it is no terminal, so that none draws."""

    def __init__(self, behind: TextIO) -> None:
        encoding = behind.encoding if (behind.encoding or "ascii").lower() != "ascii" else "utf-8"
        behind.flush()
        super().__init__(behind.buffer, encoding, "backslashreplace", newline="", line_buffering=True)
        self.behind = behind

    def write(self, text: str, /) -> int:
        """Write a text as it may be seen."""
        if not text.isprintable():
            text = "".join(c if c in _OURS else _seen(c) for c in text)
        return super().write(text)

    def isatty(self) -> bool:
        """Never."""
        return False

    def __del__(self) -> None:
        """Leave the stream behind open."""
        with suppress(ValueError):
            self.detach()


def _seen(character: str) -> str:
    return "?" if unicodedata.category(character) in _ACTS else character
