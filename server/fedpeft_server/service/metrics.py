"""Prometheus metrics on loopback, read from the files of the home at each scrape."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fedpeft.epsilons import UNBOUNDED
from fedpeft.errors import FederationError, FedPeftError
from fedpeft_server.service import certificates
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.run_view import ONLINE_SECONDS, RunView, read_view
from fedpeft_server.service.server_home import ServerHome

MOST_CAUSES = 50
"""Different causes that are counted by themselves in a run; all others count as one."""
STATES = ("submitted", "running", "done", "failed", "stopped")
_Families = dict[str, CounterMetricFamily | GaugeMetricFamily]


@contextmanager
def exposing(home: ServerHome, restarts: Mapping[str, int]) -> Generator[None]:
    """Answer scrapes on the loopback metrics port in a thread of this process.

    Raises:
        FederationError: the port is taken.
    """
    registry, port = CollectorRegistry(), home.settings.metrics_port
    registry.register(HomeCollector(home, restarts))
    try:
        server, thread = start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        raise FederationError(
            f"port {port} of loopback cannot be used for metrics: {error.strerror}"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, eq=False)
class HomeCollector(Collector):
    """All metrics of a home; a file that cannot be read is left out of one scrape."""

    home: ServerHome
    restarts: Mapping[str, int]
    _seen: dict[Path, tuple[tuple[float, ...], RunView]] = field(default_factory=dict)

    def collect(self) -> Iterator[Any]:
        """The families of metrics."""
        yield from self._of_service()
        families = _families()
        for folder in self.home.run_folders():
            try:
                _add_run(families, self._view(folder))
            except FedPeftError:
                continue
        yield from families.values()

    def _of_service(self) -> Iterator[Any]:
        processes = CounterMetricFamily(
            "fedpeft_process_restarts", "Processes started again after a death", labels=["process"]
        )
        for name, count in self.restarts.items():
            processes.add_metric([name], count)
        nodes = GaugeMetricFamily("fedpeft_nodes", "Nodes by state of enrolment", labels=["state"])
        states = Counter(node.state for node in Registry(self.home).nodes().values())
        for state in ("waiting", "enrolled", "revoked"):
            nodes.add_metric([state], states[state])
        left = certificates.days_left(certificates.load(self.home.path / "server.crt"))
        days = GaugeMetricFamily("fedpeft_certificate_days", "Days until the server certificate ends", left)
        yield from (processes, nodes, days)

    def _view(self, folder: Path) -> RunView:
        """The view of a run, read again only when one of its files has changed."""
        files = (folder / name for name in ("status.json", "metrics.jsonl", "contacts.json"))
        stamp = tuple(file.stat().st_mtime if file.exists() else 0.0 for file in files)
        if folder not in self._seen or self._seen[folder][0] != stamp:
            self._seen[folder] = (stamp, read_view(self.home, folder))
        return self._seen[folder][1]


def _families() -> _Families:
    """Empty families of a run's metrics by short name."""
    counter, gauge = CounterMetricFamily, GaugeMetricFamily
    return {
        "state": gauge("fedpeft_run_state", "1 for the state that a run is in", labels=["run", "state"]),
        "rounds": gauge("fedpeft_rounds_done", "Rounds done", labels=["run"]),
        "planned": gauge("fedpeft_rounds_planned", "Rounds of the whole run", labels=["run"]),
        "seconds": gauge("fedpeft_round_seconds", "Seconds of the newest round", labels=["run"]),
        "online": gauge("fedpeft_nodes_online", "Nodes heard of lately", labels=["run"]),
        "loss": gauge("fedpeft_held_out_loss", "Newest loss on records of our own", labels=["run"]),
        "training": gauge("fedpeft_training_loss", "Newest released loss, noisy", labels=["run"]),
        "training_error": gauge(
            "fedpeft_training_loss_error", "Its standard error, by the noise alone", labels=["run"]
        ),
        "epsilon": gauge("fedpeft_epsilon", "Privacy spent, of the worst node", labels=["run"]),
        "restarts": counter("fedpeft_run_restarts", "Deaths of the run's process", labels=["run"]),
        "bytes": counter("fedpeft_bytes", "Bytes of envelopes", labels=["run", "direction"]),
        "refused": counter("fedpeft_replies_refused", "Replies refused", labels=["run", "cause"]),
        "replies": counter("fedpeft_replies_accepted", "Valid updates", labels=["run"]),
    }


def _add_run(families: _Families, view: RunView) -> None:
    name, now = view.name, time.time()
    for state in STATES:
        families["state"].add_metric([name, state], float(view.status.state == state))
    families["rounds"].add_metric([name], view.rounds)
    families["planned"].add_metric([name], view.planned)
    if view.round_seconds is not None:
        families["seconds"].add_metric([name], view.round_seconds)
    recent = [node for node in view.nodes.values() if now - node.seen < ONLINE_SECONDS]
    families["online"].add_metric([name], len(recent))
    if view.loss is not None:
        families["loss"].add_metric([name], view.loss)
    if view.training_loss is not None:
        for family, value in zip(("training", "training_error"), view.training_loss, strict=True):
            families[family].add_metric([name], value)
    if view.epsilon is not None:
        families["epsilon"].add_metric([name], math.inf if view.epsilon == UNBOUNDED else view.epsilon)
    families["restarts"].add_metric([name], view.status.restarts)
    families["bytes"].add_metric([name, "up"], view.bytes_up)
    families["bytes"].add_metric([name, "down"], view.bytes_down)
    families["replies"].add_metric([name], view.replies)
    for cause, count in _bounded(view.refused).items():
        families["refused"].add_metric([name, cause], count)


def _bounded(causes: Counter[str]) -> Counter[str]:
    """The most frequent causes, and all the others as one."""
    bounded = Counter(dict(causes.most_common(MOST_CAUSES)))
    if rest := causes.total() - bounded.total():
        bounded["other"] += rest
    return bounded
