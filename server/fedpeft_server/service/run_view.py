"""What an operator sees of a run, read from the files that its process writes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.cli.output import console, quantity
from fedpeft.epsilons import Epsilon, shown, worst
from fedpeft.runstore import RunStore
from fedpeft.terminal import printable
from fedpeft_server.service.contacts import Contact, read_contacts
from fedpeft_server.service.node_registry import Node, Registry
from fedpeft_server.service.server_home import ENDED, RunStatus, ServerHome, read_status
from fedpeft_server.service.stock_nodes import MARK, REFUSED, read_stock

if TYPE_CHECKING:
    from rich.console import RenderableType

ONLINE_SECONDS = 60.0
"""A node that the link held for online so lately is shown as online."""


@dataclass(frozen=True)
class RunView:
    """A run as its files show it.

    Attributes:
        name: of the run.
        status: its ``status.json``.
        rounds: rounds done.
        planned: rounds of the whole run.
        nodes: what is known of each node; all enrolled ones are there.
        bytes_up: of envelopes, over all rounds.
        bytes_down: likewise.
        replies: valid updates over all rounds.
        refused: how often each cause was met.
        round_seconds: of the newest round; None before the first.
        loss: newest held-out loss; None where the coordinator judges none.
        base_loss: that of the base without an adapter.
        training_loss: newest released one, which is noisy, and its standard error; None where none leaves.
        epsilon: privacy spent, of the worst node; None: no claim so far.
        stock: nodes that took the app bundle: they run whatever code the coordinator sends.
    """

    name: str
    status: RunStatus
    rounds: int
    planned: int
    nodes: dict[str, Contact]
    bytes_up: int
    bytes_down: int
    replies: int
    refused: Counter[str]
    round_seconds: float | None
    loss: float | None
    base_loss: float | None
    training_loss: tuple[float, float] | None
    epsilon: Epsilon | None
    stock: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"refused": dict(self.refused)}


def read_view(home: ServerHome, run: Path) -> RunView:
    """Read a run.

    Raises:
        RunError: it is no run of this coordinator.
    """
    store = RunStore.open(run)
    events = list(store.events())
    rounds = [event for event in events if event.get("event") == "round"]
    losses = {event["arm"]: event["loss"] for event in events if event.get("event") == "evaluation"}
    trained = [event for event in events if event.get("event") == "training"]
    nodes, asked = Registry(home).nodes(), read_stock(run)
    return RunView(
        name=run.name,
        status=read_status(run),
        rounds=max((event["round"] for event in rounds), default=0),
        planned=store.config.federation.rounds,
        nodes=_contacts(run, nodes, asked),
        bytes_up=sum(event["bytes_up"] for event in rounds),
        bytes_down=sum(event["bytes_down"] for event in rounds),
        replies=sum(event["replies"] for event in rounds),
        refused=Counter(cause for event in rounds for cause in event["refused"].values()),
        round_seconds=rounds[-1]["total_s"] if rounds else None,
        loss=losses.get("federated"),
        base_loss=losses.get("base"),
        training_loss=(trained[-1]["loss"], trained[-1]["standard_error"]) if trained else None,
        epsilon=_epsilon(rounds),
        stock=tuple(name for name, node in sorted(nodes.items()) if asked.get(node.transport)),
    )


def _contacts(run: Path, nodes: Mapping[str, Node], asked: Mapping[str, bool]) -> dict[str, Contact]:
    """All enrolled nodes and those that were heard of; enrolment comes before the run's own files."""
    known = read_contacts(run)
    for name, node in nodes.items():
        if node.state == "enrolled":
            known.setdefault(name, Contact())
        if name not in known:
            continue
        if node.state == "revoked":
            known[name] = replace(known[name], cause="revoked")
        elif asked.get(node.transport) is False and not known[name].round:
            known[name] = replace(known[name], cause=REFUSED)
    return known


def _epsilon(rounds: list[dict[str, Any]]) -> Epsilon | None:
    """The most that is known to be spent: by nodes on their records, or by the coordinator on nodes."""
    return worst(
        epsilon
        for event in rounds
        for epsilon in (*event.get("epsilon", {}).values(), event.get("spent", {}).get("epsilon"))
    )


def render(view: RunView, now: float) -> RenderableType:
    """One run as a headline, a line of facts and a table of its nodes."""
    from rich.console import Group
    from rich.text import Text

    rounds = f"  round {view.rounds} of {view.planned}"
    headline = Text.assemble((printable(view.name), "bold"), "  ", _state(view), rounds)
    return Group(headline, Text(_facts(view)), _nodes(view, now))


def _state(view: RunView) -> tuple[str, str]:
    """What state a run is in and why, and its colour."""
    colours = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}
    cause = f": {view.status.cause}" if view.status.cause else ""
    return printable(view.status.state + cause), colours.get(view.status.state, "white")


def _facts(view: RunView) -> str:
    parts = [f"{quantity(view.bytes_up)} up", f"{quantity(view.bytes_down)} down"]
    if view.round_seconds is not None:
        parts.append(f"last round {view.round_seconds:.1f} s")
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4f}")
    if view.base_loss is not None:
        parts.append(f"base {view.base_loss:.4f}")
    if view.training_loss is not None:
        loss, error = view.training_loss
        parts.append(f"training loss {loss:.4f} ± {error:.4f} of noise")
    parts.append(f"epsilon {shown(view.epsilon)}" if view.epsilon is not None else "no privacy claim")
    if view.status.restarts:
        parts.append(f"{view.status.restarts} restarts")
    return " · ".join(parts)


def _nodes(view: RunView, now: float) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table("node", "last contact", "last update", "cause", box=SIMPLE_HEAD)
    for name, node in sorted(view.nodes.items()):
        update = f"round {node.round}" if node.round else "-"
        notes = [note for note in (MARK if name in view.stock else "", node.cause) if note]
        cells = (name, ago(node.seen, now), update, "; ".join(notes) or "-")
        grid.add_row(*(Text(printable(cell)) for cell in cells))
    return grid


def ago(then: float, now: float) -> str:
    """How long ago something was, for people: ``12 s``, ``3 min``, ``5 h``, ``2 d``; ``-``: never."""
    if not then:
        return "-"
    seconds = max(0.0, now - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def watch(home: ServerHome, run: Path, pause: float = 1.0) -> RunView:
    """Show a run live until it has ended; its last view."""
    from rich.live import Live

    view = read_view(home, run)
    with Live(render(view, time.time()), console=console(), refresh_per_second=4) as live:
        while view.status.state not in ENDED:
            time.sleep(pause)
            view = read_view(home, run)
            live.update(render(view, time.time()))
    return view
