"""``fedpeft node policy``: show, check and edit the organisation's limits."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedpeft.cli.output import JSON_OPTION, emit
from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft_clients.governance.policy import Policy

HOME = typer.Option(None, "--home", help="The node's folder; default: the only one in $FEDPEFT_HOME/node.")
FILE = typer.Argument(None, help="Policy to check; default: the node's own.")


def register(app: typer.Typer) -> None:
    """Add the ``policy`` commands."""
    group = typer.Typer(help="The organisation's limits.", no_args_is_help=True)
    for command in (show, check, edit):
        group.command(command.__name__)(command)
    app.add_typer(group, name="policy")


def show(home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Show every setting as it holds now, those that the file leaves out included."""
    policy = _read(_file(home))
    facts = policy.model_dump(mode="json")
    emit(facts, as_json, lambda: _show(facts))


def _show(facts: dict[str, object]) -> None:
    import tomli_w

    def present(table: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in table.items() if value is not None}

    tables = {
        key: present(value) if isinstance(value, dict) else value for key, value in present(facts).items()
    }
    typer.echo(tomli_w.dumps(tables), nl=False)


def check(file: Path | None = FILE, home: Path | None = HOME, as_json: bool = JSON_OPTION) -> None:
    """Check a policy; exits with 2 and names the setting if it does not hold."""
    from fedpeft_clients.governance.policy import old_names

    path = file or _file(home)
    policy = _read(path)
    names, unbounded = old_names(path.read_text(encoding="utf-8")), policy.adapter.unbounded
    note = f"; {', '.join(names)}: most_ is now max_, least_ is now min_" if names else ""
    if unbounded:
        note += f"; aggregations {', '.join(unbounded)}: a coordinator may send any state after round 1"
    facts = {"policy": str(path), "ok": True, "old_names": names, "unbounded": unbounded}
    emit(facts, as_json, lambda: typer.echo(f"{path}: holds{note}"))


def edit(home: Path | None = HOME) -> None:
    """Open a copy in $EDITOR; it takes the policy's place only if it holds."""
    from fedpeft.runstore import write_atomic

    path = _file(home)
    draft = path.with_suffix(".draft.toml")
    if not draft.exists():
        write_atomic(draft, path.read_bytes())
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        ended = subprocess.run([*editor, str(draft)], check=False).returncode
    except OSError as error:
        raise ConfigError(f"cannot start {editor[0]!r} ({error.strerror}); set EDITOR") from None
    if ended:
        raise ConfigError(
            f"{editor[0]!r} ended with {ended}; the policy stays as it was, the draft is {draft}"
        )
    try:
        _read(draft)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; the policy stays as it was, 'policy edit' goes on with the draft"
        ) from None
    os.replace(draft, path)
    typer.echo(f"{path}: replaced; it holds from the next order on")


def _file(home: Path | None) -> Path:
    from fedpeft_clients.governance.organisation import open_organisation

    return open_organisation(home).policy


def _read(path: Path) -> Policy:
    from fedpeft_clients.governance.policy import parse_policy

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})") from None
    return parse_policy(text)
