"""The command line: ``fedpeft``.

Nothing heavy is imported here; commands of other packages come by the entry point ``fedpeft.commands``.

Exit codes: 0 done · 1 unexpected error · 2 setting or usage · 3 data · 4 base · 5 exchange ·
6 privacy · 7 federation · 8 run directory · 9 audit · 10 a leak was found (``audit --fail-on-leak``) ·
130 interrupted.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import typer

from fedpeft import __version__
from fedpeft.cli import adapter, configuration, doctor, kits, privacy, runs
from fedpeft.cli.argument_help import keep_argument_help
from fedpeft.cli.output import EXIT_INTERRUPTED
from fedpeft.errors import FedPeftError
from fedpeft.terminal import clean_output, printable


def _version(value: bool) -> None:
    if value:
        typer.echo(f"fedpeft {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The whole command line, with the commands that installed packages register."""
    keep_argument_help()
    app = typer.Typer(
        name="fedpeft",
        help="Federated, privacy-audited fine-tuning of language model adapters.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def root(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        del version

    app.callback()(root)
    for module in (configuration, adapter, doctor, kits, privacy, runs):
        module.register(app)
    for point in sorted(entry_points(group="fedpeft.commands"), key=lambda point: point.name):
        if find_spec(point.module.partition(".")[0]) is not None:  # the wheel holds no benchmarks
            point.load()(app)
    return app


def main() -> None:
    """Run the command line; a known error is one line on stderr and its documented exit code."""
    with clean_output():
        try:
            build_app()()
        except FedPeftError as error:
            typer.echo(f"error: {printable(error)}", err=True)
            sys.exit(error.exit_code)
        except SystemExit as end:
            if end.code == EXIT_INTERRUPTED:  # as which typer passes an interrupt on
                typer.echo("interrupted", err=True)
            raise
