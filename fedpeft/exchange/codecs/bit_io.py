"""Reading and writing of bit fields in front of the entropy-coded streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import EnvelopeError

Bits = NDArray[np.uint8]


def field_bits(values: Sequence[int], widths: Sequence[int]) -> Bits:
    """Unsigned integers as bits, most significant first, field after field; each must fit its width."""
    pairs = zip(values, widths, strict=True)
    text = "".join(format(value, f"0{width}b") for value, width in pairs if width)
    return np.frombuffer(text.encode(), np.uint8) - ord("0")


def to_bytes(parts: Sequence[Bits]) -> bytes:
    """Concatenate bit arrays and pad with zeros to whole bytes, most significant bit first."""
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


@dataclass
class BitReader:
    """A cursor over the bits of a payload that refuses to read past the end.

    Eight bytes of memory per byte of payload: bound the payload first.
    """

    bits: Bits
    cursor: int = 0

    @classmethod
    def of(cls, data: bytes) -> BitReader:
        """Open a payload at its first bit."""
        return cls(np.unpackbits(np.frombuffer(data, np.uint8)))

    def take(self, count: int) -> Bits:
        """The next ``count`` bits.

        Raises:
            EnvelopeError: fewer are left.
        """
        if count > self.bits.size - self.cursor:
            raise EnvelopeError(
                f"envelope is cut off: {count} bits are needed at bit {self.cursor} of {self.bits.size}"
            )
        self.cursor += count
        return self.bits[self.cursor - count : self.cursor]

    def fields(self, widths: Sequence[int]) -> list[int]:
        """The next unsigned integers of the given widths; one without bits is 0."""
        text = (self.take(sum(widths)) + np.uint8(ord("0"))).tobytes().decode()
        result: list[int] = []
        start = 0
        for width in widths:
            result.append(int(text[start : start + width], 2) if width else 0)
            start += width
        return result

    @property
    def rest(self) -> Bits:
        """What has not been read, without reading it."""
        return self.bits[self.cursor :]
