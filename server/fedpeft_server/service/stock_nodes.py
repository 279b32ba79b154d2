"""Nodes that ask for the app bundle: stock Flower nodes, which run whatever code a coordinator sends.

fedpeft's own node never asks. What the link has seen stands in ``stock.json`` of the run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.runstore import RunStore, read_json, write_json
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import ServerHome, read_status

FILE = "stock.json"
MARK = "runs coordinator code"
REFUSED = "is a stock Flower node; the run takes none (federation.stock_nodes)"


@dataclass(frozen=True)
class BundleGate:
    """Hands out app bundles where a run takes stock nodes, and notes who asked.

    Attributes:
        home: the coordinator.
    """

    home: ServerHome
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, flower_run: int, key: str) -> bool:
        """Whether the node with this key, an OpenSSH public line, may have the bundle of a run."""
        for folder in self.home.run_folders():
            if read_status(folder).flower_run == flower_run:
                return self._noted(folder, key, RunStore(folder).config.federation.stock_nodes)
        return False

    def is_stock(self, key: str) -> bool:
        """Whether this key, an OpenSSH public line, was enrolled as that of a stock Flower node."""
        nodes = Registry(self.home).enrolled().values()
        return any(node.stock for node in nodes if node.transport == key)

    def _noted(self, run: Path, key: str, allowed: bool) -> bool:
        with self._alone:
            write_json(run / FILE, read_stock(run) | {key: allowed})
        return allowed


def read_stock(run: Path) -> dict[str, bool]:
    """The keys that asked for a run's bundle, and whether they got it."""
    return read_json(run / FILE, {})
