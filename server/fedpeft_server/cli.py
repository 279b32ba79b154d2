"""``fedpeft server``: what a coordinator's operator does."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the ``server`` commands."""
    group = typer.Typer(help="A federation's coordinator.", no_args_is_help=True)
    app.add_typer(group, name="server")
