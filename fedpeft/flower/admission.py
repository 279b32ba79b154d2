"""How many connections a coordinator keeps, and whose: room for enrolled nodes whatever strangers do."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fedpeft.limits import RateLimit, network_of


@dataclass(frozen=True)
class Limits:
    """What strangers may take: connections whose sender has proved no enrolled key.

    A network is an IPv4 address or an IPv6 /64. One from which an enrolled key was proved within the last
    hour is known: it has room of its own, which nobody elsewhere can take.

    Attributes:
        strangers: connections of all networks that are not known.
        of_network: strangers' connections of one network, known or not.
        of_key: connections of one enrolled key.
        burst, per_second: new connections of one network; many nodes may share one address.
        all_burst, all_per_second: new connections of all networks that are not known.
        known_seconds: so long a network stays known.
        most_known: so many networks are remembered.
    """

    strangers: int = 128
    of_network: int = 32
    of_key: int = 16
    burst: float = 128.0
    per_second: float = 50.0
    all_burst: float = 256.0
    all_per_second: float = 200.0
    known_seconds: float = 3600.0
    most_known: int = 4096


@dataclass(eq=False)
class Visit:
    """One connection. `close` ends it at once."""

    network: str
    close: Callable[[], None]
    key: str = ""


@dataclass
class Admission:
    """Who is connected. Where there is no room, the oldest stranger of the busiest network makes some.

    So a network that takes all it can harms its own visitors only, and a visitor who proves an enrolled key
    soon is not turned out by those who came before.
    """

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    _strangers: dict[str, dict[Visit, None]] = field(default_factory=dict)
    _of_key: dict[str, dict[Visit, None]] = field(default_factory=dict)
    _known: OrderedDict[str, float] = field(default_factory=OrderedDict)
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
        self._known[visit.network] = self.clock()
        self._known.move_to_end(visit.network)
        while len(self._known) > self.limits.most_known:
            self._known.popitem(last=False)
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

    def count(self) -> tuple[int, int]:
        """Connections of strangers, and of enrolled keys."""
        strangers, enrolled = self._strangers.values(), self._of_key.values()
        return sum(map(len, strangers)), sum(map(len, enrolled))

    def _make_room(self, network: str) -> None:
        """Turn a stranger out where the newcomer is one too many."""
        if len(self._strangers.get(network, {})) >= self.limits.of_network:
            return _dismiss(self._strangers[network])
        if self._is_known(network):
            return None
        crowd = [peers for name, peers in self._strangers.items() if not self._is_known(name)]
        for _ in range(sum(map(len, crowd)) - self.limits.strangers + 1):
            _dismiss(max(crowd, key=len))
        return None

    def _is_known(self, network: str) -> bool:
        since = self._known.get(network)
        return since is not None and self.clock() - since < self.limits.known_seconds


def _dismiss(peers: dict[Visit, None]) -> None:
    """Close the oldest of some connections; it counts no more from now on."""
    oldest = next(iter(peers))
    del peers[oldest]
    oldest.close()
