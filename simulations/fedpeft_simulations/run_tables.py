"""A run as tables: its rounds, its nodes and what the audit found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.extras import needs
from fedpeft.runstore import RunStore

if TYPE_CHECKING:
    from pandas import DataFrame

    from fedpeft.config import Config


@dataclass(frozen=True)
class Run:
    """A run directory; pandas is loaded when the first table is asked for.

    Attributes:
        path: the run directory.
    """

    path: Path

    @property
    def config(self) -> Config:
        """The resolved config that the run was started with.

        Raises:
            RunError: the folder is not a run directory.
        """
        return RunStore.open(self.path).config

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return RunStore(self.path).is_finished

    @property
    def summary(self) -> dict[str, Any]:
        """``run.json``: losses, bytes, privacy, times.

        Raises:
            RunError: the run has not finished.
        """
        return RunStore.open(self.path).summary

    @property
    def adapter(self) -> Path:
        """The trained adapter, a folder that plain ``peft`` loads."""
        return RunStore.open(self.path).adapter

    @property
    def rounds(self) -> DataFrame:
        """One row per round: what was sent and how long it took; held-out ``loss`` where it was measured."""
        with needs("simulation", "a table of a run"):
            from pandas import DataFrame

        store = RunStore.open(self.path)
        table = DataFrame(list(store.events("round")))
        if table.empty:
            return table
        table = table.drop(columns="event").drop_duplicates("round", keep="last").set_index("round")
        scores = [event for event in store.events("evaluation") if event["arm"] == "federated"]
        for name in ("loss", "accuracy"):
            table[name] = table.index.map({event["round"]: event[name] for event in scores})
        return table

    @property
    def nodes(self) -> DataFrame:
        """One row per node: envelopes and bytes sent, seconds of training, privacy spent.

        Raises:
            RunError: the run has not finished.
        """
        with needs("simulation", "a table of a run"):
            from pandas import DataFrame

        store = RunStore.open(self.path)
        privacy = {node["name"]: node for node in store.summary["privacy"]["nodes"]}
        rows = [_node(store, home) | privacy.get(home.name, {}) for home in store.homes]
        return DataFrame(rows).set_index("name")

    @property
    def findings(self) -> DataFrame:
        """One row per attack and stage of the audit, the headline figure with its interval; may be empty."""
        with needs("simulation", "a table of a run"):
            from pandas import DataFrame

        path = self.path / "audit" / "report.json"
        entries = json.loads(path.read_text(encoding="utf-8"))["findings"] if path.is_file() else []
        names = ("attack", "stage", "threat_model", "verdict", "value", "interval", "baselines", "reason")
        rows = [{name: finding[name] for name in names} for finding in entries]
        return DataFrame(rows, columns=list(names))


def _node(store: RunStore, home: Path) -> dict[str, Any]:
    envelopes = [path.stat().st_size for path in (store.path / "updates").glob(f"r*/{home.name}.fpd")]
    times = home / "times.jsonl"
    lines = times.read_text(encoding="utf-8").splitlines() if times.is_file() else []
    seconds = sum(json.loads(line)["train_s"] for line in lines)
    return {"name": home.name, "updates": len(envelopes), "bytes_up": sum(envelopes), "train_s": seconds}
