"""Words from AES-256-CTR keyed by the operating system: the only source of privacy randomness."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError

KEY_BYTES = 32
WORD_BYTES = 8

Randomness = Callable[[int], NDArray[np.uint64]]
"""``source(count)``: so many fresh 64-bit words, shape ``(count,)``."""


def words(count: int) -> NDArray[np.uint64]:
    """Unpredictable 64-bit words, shape ``(count,)``, under a key that is used for this call only.

    A fresh 256-bit key per call leaves no state: nothing to seed, nothing that a fork or a thread could
    copy, and noise and sampling never share a stream. No configured seed has any influence.
    """
    return keystream(os.urandom(KEY_BYTES), count)


def seeded(key: bytes) -> Randomness:
    """A reproducible source: one AES-256-CTR stream, of which each call takes the next words.

    For runs whose plan is marked ``reproducible``, and whose epsilon is infinite: who knows the key knows
    the noise. Give each node, round and purpose a key of its own; do not share a source among threads.

    Args:
        key: 32 bytes.

    Raises:
        PrivacyError: a key of another length.
    """
    if len(key) != KEY_BYTES:
        raise PrivacyError(f"the key of a reproducible source has {len(key)} bytes; give {KEY_BYTES}")
    stream = _ctr(key)
    return lambda count: _words(stream(bytes(WORD_BYTES * count)))


def keystream(key: bytes, count: int) -> NDArray[np.uint64]:
    """The first ``count`` little-endian words of AES-256-CTR under ``key``, counter from zero.

    Source: NIST SP 800-38A section 6.5; known answers in the tests.
    """
    return _words(_ctr(key)(bytes(WORD_BYTES * count)))


def _ctr(key: bytes) -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update


def _words(stream: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(stream, dtype="<u8")
