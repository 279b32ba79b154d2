"""Shamir's secret sharing over the integers modulo 2^255 - 19 (Shamir 1979, How to share a secret)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache

PRIME = 2**255 - 19
SECRET_BYTES = 32


def fresh_secret() -> bytes:
    """A uniform element of the field, 32 bytes little-endian, from the operating system."""
    return secrets.randbelow(PRIME).to_bytes(SECRET_BYTES, "little")


def split(secret: bytes, threshold: int, points: Iterable[int]) -> dict[int, bytes]:
    """Shares of a field element at the given points (1 and above), 32 bytes each.

    Any ``threshold`` shares give the secret, fewer are consistent with every secret.
    """
    constant = int.from_bytes(secret, "little")
    if constant >= PRIME:
        raise ValueError("the secret is not an element of the field")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {point: _evaluate(constant, coefficients, point) for point in points}


def join(shares: Mapping[int, bytes]) -> bytes:
    """The value at zero of the polynomial through all given shares; wrong or too few give another value."""
    points = tuple(sorted(shares))
    values = (int.from_bytes(shares[point], "little") for point in points)
    secret = sum(weight * value for weight, value in zip(_weights(points), values, strict=True)) % PRIME
    return secret.to_bytes(SECRET_BYTES, "little")


def _evaluate(constant: int, coefficients: list[int], point: int) -> bytes:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * point % PRIME
    return ((value + constant) % PRIME).to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=8)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at zero."""
    weights: list[int] = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
