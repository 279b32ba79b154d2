"""``fedpeft config``: the settings, their schema, and what a scenario resolves to."""

from __future__ import annotations

import json

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table
from fedpeft.cli.scenario import SCENARIO, SET, scenario_config


def register(app: typer.Typer) -> None:
    """Add the ``config`` commands."""
    group = typer.Typer(help="Settings: schema and resolved scenarios.", no_args_is_help=True)
    group.command("schema")(schema)
    group.command("show")(show)
    group.command("profiles")(profiles)
    app.add_typer(group, name="config")


def schema() -> None:
    """Print the JSON schema of a scenario file."""
    from fedpeft.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


def show(
    scenario: str | None = SCENARIO,
    set_: list[str] = SET,
    as_json: bool = JSON_OPTION,
) -> None:
    """Print the resolved settings of a scenario: what `fedpeft simulate` with the same arguments runs."""
    from fedpeft.config import dump_config

    config = scenario_config(scenario, set_, as_json=as_json, mark="# ")
    emit(config.model_dump(mode="json"), as_json, lambda: typer.echo(dump_config(config), nl=False))


def profiles(as_json: bool = JSON_OPTION) -> None:
    """List the bandwidth profiles: when to use each, what it sets, and the quality measured with it."""
    from dataclasses import asdict

    from fedpeft.config.profiles import PROFILES

    rows = [
        (
            name,
            item.purpose,
            "\n".join(f"{key} = {value}" for key, value in item.settings.items()),
            item.measured,
        )
        for name, item in PROFILES.items()
    ]
    header = ("exchange.profile", "for", "sets", "measured")
    facts = {name: asdict(item) for name, item in PROFILES.items()}
    emit(facts, as_json, lambda: table("bandwidth profiles", header, rows))
