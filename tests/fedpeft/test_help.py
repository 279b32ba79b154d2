"""Every command shows the help of every argument and option, by ``-h`` and ``--help`` alike."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.cli import build_app

FEDPEFT = str(Path(sys.executable).parent / "fedpeft")


def _commands(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(build_app())))


def _words(text):
    """A help page as one line of words: no frames, and no breaks within a sentence."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fedpeft")
def test_every_argument_and_option_shows_its_help(path):
    arguments = [*path, "-h"]
    shown = CliRunner(env={"COLUMNS": "4000", "TERMINAL_WIDTH": "4000"}).invoke(build_app(), arguments)
    assert shown.exit_code == 0, shown.output
    page = _words(shown.output)
    for parameter in COMMANDS[path].params:
        assert parameter.help, f"{' '.join(path)}: {parameter.name} has no help"
        assert _words(parameter.help) in page, f"{' '.join(path)}: {parameter.name}"
    assert COMMANDS[path].help, path


def test_a_shell_completes_commands_and_loads_nothing_heavy():
    asked = {"_FEDPEFT_COMPLETE": "complete_bash", "COMP_WORDS": "fedpeft sim", "COMP_CWORD": "1"}
    done = subprocess.run([FEDPEFT], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == ["simulate"]
    shown = subprocess.run([FEDPEFT, "--show-completion", "bash"], capture_output=True, text=True)
    assert "_FEDPEFT_COMPLETE=complete_bash" in shown.stdout, shown
