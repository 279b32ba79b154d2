"""How often strangers may ask: a bucket of requests for each network that they ask from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

_PREFIX = 64
"""Bits of an IPv6 address that name a network: whoever has one address of it has all 2**64."""


def network_of(address: str) -> str:
    """Whom an address counts for: an IPv4 address for itself, an IPv6 address for its /64."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip_network((int(ip), _PREFIX), strict=False))


@dataclass
class RateLimit:
    """A bucket for each peer: so many requests at once, and then so many a second.

    The peers that asked longest ago are forgotten first, so that memory is bounded.

    Attributes:
        burst: requests at once.
        per_second: requests a second from then on.
        most_peers: so many are remembered.
    """

    burst: float
    per_second: float
    most_peers: int = 1024
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allows(self, peer: str, now: float) -> bool:
        """Whether one more request of a peer is let through at a time (seconds, monotonic)."""
        with self._lock:
            left, then = self._buckets.pop(peer, (self.burst, now))
            left = min(self.burst, left + (now - then) * self.per_second)
            self._buckets[peer] = (left - 1 if left >= 1 else left, now)
            while len(self._buckets) > self.most_peers:
                self._buckets.popitem(last=False)
            return left >= 1
