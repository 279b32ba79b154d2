"""``fedpeft kit``: container files, service units and runbooks of the installed version."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import typer

from fedpeft.cli.output import JSON_OPTION, emit
from fedpeft.errors import ConfigError

PACKAGES = {"node": "fedpeft_clients", "coordinator": "fedpeft_server"}
"""Kit to the package that carries it."""
CONSTRAINTS = "constraints.txt"


def register(app: typer.Typer) -> None:
    """Add the ``kit`` commands."""
    group = typer.Typer(help="Container files, service units and runbooks.", no_args_is_help=True)
    group.callback()(_group)
    group.command("write")(write)
    app.add_typer(group, name="kit")


def _group() -> None:
    """Keep the name of a single command."""


def write(
    folder: Path = typer.Argument(help="Folder to make; one folder per kit, and constraints.txt."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the kits of node and coordinator, and the versions that were tested together."""
    if folder.exists():
        raise ConfigError(f"{str(folder)!r} exists; give a folder that is not there yet")
    sources = {name: _beside(package, "kit") for name, package in PACKAGES.items()}
    constraints = _beside("fedpeft", CONSTRAINTS)
    for name, source in sources.items():
        shutil.copytree(source, folder / name)
    shutil.copy(constraints, folder / CONSTRAINTS)
    files = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    emit({"files": files}, as_json, lambda: typer.echo("\n".join(files)))


def _beside(package: str, name: str) -> Path:
    """Where a file or folder of a package lies: in the wheel within it, in a checkout beside it.

    Raises:
        ConfigError: it is in neither place.
    """
    spec = find_spec(package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    for place in (folder / name, folder.parent / name):
        if place.exists():
            return place
    raise ConfigError(f"this installation has no {name} of {package}; install the wheel of fedpeft again")
