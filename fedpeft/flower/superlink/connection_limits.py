"""How many connections a coordinator keeps, and whose: some are reserved for enrolled nodes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fedpeft.rate_limits import RateLimit, network_of


@dataclass(frozen=True)
class Limits:
    """What strangers may take: connections whose sender has proved no enrolled key.

    A network is an IPv4 address or an IPv6 /64. One from which an enrolled key was proved within the last
    hour is known: connections are reserved for it, which no unknown network can take.

    Attributes:
        strangers: connections of all networks that are not known.
        known_strangers: strangers' connections of all known networks.
        of_network: strangers' connections of one network, known or not.
        of_key: connections of one enrolled key.
        burst, per_second: new connections of one network; many nodes may share one address.
        all_burst, all_per_second: new connections of all networks that are not known.
        known_seconds: so long a network stays known.
        most_known: so many networks are remembered.
        known_of_key: so many of them for one key, the ones that it came from last.
    """

    strangers: int = 128
    known_strangers: int = 512
    of_network: int = 32
    of_key: int = 16
    burst: float = 128.0
    per_second: float = 50.0
    all_burst: float = 256.0
    all_per_second: float = 200.0
    known_seconds: float = 3600.0
    most_known: int = 4096
    known_of_key: int = 16


@dataclass(eq=False)
class Visit:
    """One connection. `close` ends it at once."""

    network: str
    close: Callable[[], None]
    key: str = ""


@dataclass
class Admission:
    """Who is connected. At the limit, the oldest stranger of the busiest network is disconnected.

    So a network that takes all it can harms its own visitors only, and a visitor who proves an enrolled key
    soon is not turned out by those who came before.
    """

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _strangers: dict[str, dict[Visit, None]] = field(default_factory=dict)
    _of_key: dict[str, dict[Visit, None]] = field(default_factory=dict)
    _known: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _networks: dict[str, OrderedDict[str, None]] = field(default_factory=dict)
    _vouching: dict[str, set[str]] = field(default_factory=dict)
    _rate: RateLimit = field(init=False)
    _overall: RateLimit = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        self._rate = RateLimit(limits.burst, limits.per_second, limits.most_known)
        self._overall = RateLimit(limits.all_burst, limits.all_per_second)

    def arrive(self, address: str, close: Callable[[], None]) -> Visit | None:
        """A connection from an address; None: it comes too soon after others and must be closed."""
        network, now = network_of(address), self.clock()
        if not self._rate.allows(network, now):
            return None
        if not self._is_known(network) and not self._overall.allows("", now):
            return None
        self._make_room(network)
        visit = Visit(network, close)
        self._strangers.setdefault(network, {})[visit] = None
        return visit

    def prove(self, visit: Visit, key: str) -> None:
        """The visitor holds an enrolled key: it is no stranger any more, and its network is known."""
        self._remember(visit.network, key)
        if visit.key == key:
            return
        self.leave(visit)
        visit.key, peers = key, self._of_key.setdefault(key, {})
        while len(peers) >= self.limits.of_key:
            _dismiss(peers)
        peers[visit] = None

    def leave(self, visit: Visit) -> None:
        """The connection is over; telling it twice is harmless."""
        table, name = (self._of_key, visit.key) if visit.key else (self._strangers, visit.network)
        peers = table.get(name, {})
        peers.pop(visit, None)
        if not peers:
            table.pop(name, None)

    def turn_out_strangers(self) -> None:
        """Close the connections of all who have proved no key."""
        for peers in self._strangers.values():
            while peers:
                _dismiss(peers)

    def count(self) -> tuple[int, int]:
        """Connections of strangers, and of enrolled keys."""
        strangers, enrolled = self._strangers.values(), self._of_key.values()
        return sum(map(len, strangers)), sum(map(len, enrolled))

    def _make_room(self, network: str) -> None:
        """Turn a stranger out where the newcomer is one too many."""
        if len(self._strangers.get(network, {})) >= self.limits.of_network:
            return _dismiss(self._strangers[network])
        known = self._is_known(network)
        most = self.limits.known_strangers if known else self.limits.strangers
        groups = [peers for name, peers in self._strangers.items() if self._is_known(name) == known]
        for _ in range(sum(map(len, groups)) - most + 1):
            _dismiss(max(groups, key=len))
        return None

    def _remember(self, network: str, key: str) -> None:
        """A network is known as long as a key vouches for it, and a key vouches for few."""
        self._known[network] = self.clock()
        self._known.move_to_end(network)
        self._vouching.setdefault(network, set()).add(key)
        networks = self._networks.setdefault(key, OrderedDict())
        networks[network] = None
        networks.move_to_end(network)
        while len(networks) > self.limits.known_of_key:
            self._withdraw(next(iter(networks)), key)
        while len(self._known) > self.limits.most_known:
            oldest = next(iter(self._known))
            for voucher in list(self._vouching[oldest]):
                self._withdraw(oldest, voucher)

    def _withdraw(self, network: str, key: str) -> None:
        self._networks[key].pop(network)
        if not self._networks[key]:
            del self._networks[key]
        self._vouching[network].discard(key)
        if not self._vouching[network]:
            del self._vouching[network], self._known[network]

    def _is_known(self, network: str) -> bool:
        since = self._known.get(network)
        return since is not None and self.clock() - since < self.limits.known_seconds


def _dismiss(peers: dict[Visit, None]) -> None:
    """Close the oldest of some connections; it counts no more from now on."""
    oldest = next(iter(peers))
    del peers[oldest]
    oldest.close()
