"""``fedpeft node roster``: show the keys of those whom this node sums with, and pin what was compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, table

HOME = typer.Option(None, "--home", help="The node's folder; default: the only one in $FEDPEFT_HOME/node.")
RUN = typer.Argument(None, help="First digits of an offered run; none: the pinned keys alone.")


def register(app: typer.Typer) -> None:
    """Add the ``roster`` commands."""
    group = typer.Typer(help="Keys of the nodes that this one sums with.", no_args_is_help=True)
    for command in (show, pin, unpin):
        group.command(command.__name__)(command)
    app.add_typer(group, name="roster")


def show(run: str | None = RUN, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Show the pinned keys, and those of a run's roster beside them; compare them with their owners."""
    from fedpeft_clients.governance.organisation import open_organisation
    from fedpeft_clients.governance.proposals import offered
    from fedpeft_clients.governance.rosters import pinned, states

    organisation = open_organisation(home)
    saved = offered(organisation, run) if run else None
    roster = saved.roster if saved else {}
    known = states(organisation, roster)
    facts: dict[str, Any] = {
        "pinned": pinned(organisation),
        "run": saved.run if saved else None,
        "terms": saved.digest if saved else None,
        "roster": {name: {"key": key.hex(), "state": known[name]} for name, key in sorted(roster.items())},
    }
    emit(facts, as_json, lambda: _show(facts))


def _show(facts: dict[str, Any]) -> None:
    from fedpeft.terminal import printable

    if facts["roster"]:
        rows = [(printable(name), entry["key"], entry["state"]) for name, entry in facts["roster"].items()]
        table("roster of the run", ("name", "public signing key", "state"), rows)
        typer.echo(f"hash of its terms: {facts['terms']}")
    else:
        table("pinned", ("name", "public signing key"), facts["pinned"].items())
    typer.echo("each owner finds its key in 'fedpeft node doctor'; compare all digits over another way")
    if facts["roster"]:
        how = f"fedpeft node roster pin {facts['run'][:12]} --terms {facts['terms'][:32]}"
        typer.echo(f"then pin them as they are shown: {how}")


def pin(
    what: str = typer.Argument(help="First digits of an offered run; with --key: name of an organisation."),
    key: str | None = typer.Option(None, help="Its public signing key, 64 hexadecimal digits."),
    terms: str | None = typer.Option(
        None, help="Hash of the terms whose keys were compared, from 'roster show'; without --key."
    ),
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Pin the keys of a run's roster, or one key, once they were compared with their owners."""
    from fedpeft_clients.governance.organisation import open_organisation
    from fedpeft_clients.governance.proposals import read_before
    from fedpeft_clients.governance.rosters import pin, states

    organisation = open_organisation(home)
    if key is not None:
        keys = {what: key}
    else:
        roster = read_before(organisation, what, terms).roster
        known = states(organisation, roster)
        keys = {name: public.hex() for name, public in sorted(roster.items()) if known[name] != "own"}
    pin(organisation, keys)
    emit({"pinned": keys}, as_json, lambda: _show({"pinned": keys, "roster": {}}))


def unpin(
    name: str = typer.Argument(help="Name of an organisation."),
    home: Path | None = HOME,
    as_json: bool = JSON_OPTION,
) -> None:
    """Forget a pinned key; runs that hold it wait from the next order on."""
    from fedpeft_clients.governance.organisation import open_organisation
    from fedpeft_clients.governance.rosters import unpin

    unpin(open_organisation(home), name)
    emit({"unpinned": name}, as_json, lambda: typer.echo(f"{name}: its key is not pinned any more"))
