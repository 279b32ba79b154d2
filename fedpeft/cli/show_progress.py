"""What a long command shows while it works: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from fedpeft.progress_reports import Estimate, duration, watching
from fedpeft.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Say = Callable[[str], None]
"""Shows one line that stays."""

LINE_SECONDS = 15.0
"""From one line about the progress to the next, where there is no terminal."""
RECENT = 6
"""Lines of the past that the live view keeps in sight."""


@contextmanager
def progress(*, quiet: bool = False, to_stderr: bool = False, live: bool = True) -> Generator[Say]:
    """Show what this process works on, how far it is and about how long it takes, while the body runs.

    On a terminal one line is renewed all the time; elsewhere a line is printed now and then, also while a
    single step lasts. Whatever the body passes to what is yielded is a line of its own.

    Args:
        quiet: show nothing.
        to_stderr: print lines to standard error: standard output holds the result.
        live: use the live view on a terminal; not where the body prints tables of its own.
    """
    from fedpeft.cli.output import console as drawn_on

    console, estimate = drawn_on(stderr=True), Estimate()
    if quiet:
        yield lambda line: None
        return
    shown = _live(console, estimate) if live and console.is_terminal else _lines(estimate, to_stderr)
    with watching(estimate), shown as say:
        yield say


@contextmanager
def _lines(estimate: Estimate, to_stderr: bool) -> Generator[Say]:
    over, started = threading.Event(), time.monotonic()

    def say(line: str) -> None:
        typer.echo(line, err=to_stderr)

    def print_estimates() -> None:
        while not over.wait(LINE_SECONDS):
            if estimate.text:
                say(f"  [{duration(time.monotonic() - started)}] {estimate.text}")

    teller = threading.Thread(target=print_estimates, name="fedpeft-progress", daemon=True)
    teller.start()
    try:
        yield say
    finally:
        over.set()
        teller.join()


@contextmanager
def _live(console: Console, estimate: Estimate) -> Generator[Say]:
    from rich.live import Live
    from rich.text import Text

    recent, started = list[str](), time.monotonic()

    def view() -> Text:
        clock = f"{duration(time.monotonic() - started)} · {estimate.text}"
        return Text("\n".join(printable(line) for line in [*recent[-RECENT:], clock]))

    with Live(
        get_renderable=view, console=console, refresh_per_second=4, transient=True, redirect_stdout=False
    ):
        yield recent.append
