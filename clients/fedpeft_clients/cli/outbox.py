"""``fedpeft node outbox``: what left, whether its log was tampered with, and a copy for others to check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import quantity
from fedpeft.cli.signed_logs import LogCommands, moment
from fedpeft_attacks.results.words import verdict_words

if TYPE_CHECKING:
    from fedpeft.trust.signed_log import SignedLog

COLUMNS = ("entry", "time (UTC)", "kind", "run", "round", "bytes", "epsilon", "audit", "to")


def register(app: typer.Typer) -> None:
    """Add the ``outbox`` commands."""
    LogCommands("outbox", _open, COLUMNS, row).register(app, "outbox", "The log of what left.")


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """An entry as a line of a table."""
    kind = entry["kind"] if entry["kind"] != "error" else f"error {entry['reason']}"
    size = quantity(entry["bytes"]) if "bytes" in entry else "-"
    epsilon = "-" if entry.get("epsilon") is None else str(entry["epsilon"])
    audit = "-" if entry.get("audit") is None else verdict_words(entry["audit"])
    number = str(entry.get("round") or "-")
    run = (entry["run"] or "-")[:12]
    return (str(entry["seq"]), moment(entry), kind, run, number, size, epsilon, audit, entry["to"][:9])


def _open(home: Path | None) -> tuple[str, SignedLog]:
    from fedpeft_clients.governance.organisation import open_organisation

    organisation = open_organisation(home)
    return organisation.name, organisation.outbox
