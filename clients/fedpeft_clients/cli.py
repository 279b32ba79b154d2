"""``fedpeft node``: what an organisation does with its own node."""

from __future__ import annotations

import typer

from fedpeft_clients import ledger_cli


def register(app: typer.Typer) -> None:
    """Add the ``node`` commands."""
    group = typer.Typer(help="An organisation's node.", no_args_is_help=True)
    ledger_cli.register(group)
    app.add_typer(group, name="node")
