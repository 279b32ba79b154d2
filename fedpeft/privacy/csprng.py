"""Words from AES-256-CTR keyed by the operating system: the only source of privacy randomness."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
WORD_BYTES = 8


def words(count: int) -> NDArray[np.uint64]:
    """Unpredictable 64-bit words, shape ``(count,)``, under a key that is used for this call only.

    A fresh 256-bit key per call leaves no state: nothing to seed, nothing that a fork or a thread could
    copy, and noise and sampling never share a stream. No configured seed has any influence.
    """
    return keystream(os.urandom(KEY_BYTES), count)


def keystream(key: bytes, count: int) -> NDArray[np.uint64]:
    """The first ``count`` little-endian words of AES-256-CTR under ``key``, counter from zero.

    Source: NIST SP 800-38A section 6.5; known answers in the tests.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(WORD_BYTES * count)), dtype="<u8")
