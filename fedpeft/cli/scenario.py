"""The scenario argument and ``--set``, alike in every command that takes settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedpeft.config import Config

SCENARIO_HELP = (
    "Scenario file (TOML), 'embedded' or 'defaults'. None: the embedded scenario, or the defaults if --set "
    "gives base.model or data.source."
)
SCENARIO = typer.Argument(None, help=SCENARIO_HELP)
SET = typer.Option([], "--set", help="key=value that overrides the scenario; repeatable.")


def scenario_config(
    name: str | None, overrides: Sequence[str], *, as_json: bool = False, mark: str = ""
) -> Config:
    """The settings of a command; says in one line where they came from.

    Args:
        name: as typed by the user.
        overrides: the values of ``--set``.
        as_json: standard output is for a machine: the line goes to standard error.
        mark: what the line begins with, where standard output has a syntax of its own.

    Raises:
        ConfigError: as `load_config`.
    """
    from fedpeft.config.scenarios import load_scenario

    scenario = load_scenario(name, overrides)
    typer.echo(scenario.origin if as_json else f"{mark}{scenario.origin}", err=as_json)
    return scenario.config
