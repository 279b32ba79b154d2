"""Help texts of arguments under click 8.5, which typer 0.20 does not know yet.

Since click 8.5 `click.Argument` has a ``help`` of its own, and its constructor sets it, to None where it is
given none. typer 0.20 sets ``help`` first and then calls that constructor without it, so every argument loses
its text. Flower wants typer below 0.21, and a ceiling on click would bind whatever else is installed here.
"""

from __future__ import annotations

from typing import Any

import typer.main
from typer.core import TyperArgument


class _Argument(TyperArgument):
    def __init__(self, *, help: str | None = None, **settings: Any) -> None:
        super().__init__(help=help, **settings)
        self.help = help


def keep_argument_help() -> None:
    """Let typer build arguments that keep their help; harmless where it does so by itself."""
    setattr(typer.main, "TyperArgument", _Argument)  # noqa: B010 - typer does not export the name
