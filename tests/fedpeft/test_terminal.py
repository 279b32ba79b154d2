"""Text of strangers on its way to a terminal: it is seen, and it does nothing."""

import ast
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from fedpeft.terminal import printable

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[2J\x1b]0;pwn\x07\x9b31m\u202eevil\u2028[/x][link=https://e]x[/link]:smile:\r\nok: all well\ud800"
ACTS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SHOWN = """
import logging, sys, warnings
from fedpeft.cli.output import console, table
from fedpeft.terminal import clean_output
evil = {evil!r}
with clean_output():
    {act}
"""
DOORS = {
    "print": "print(evil)",
    "stderr": "print(evil, file=sys.stderr)",
    "echo": "import typer; typer.echo(evil)",
    "a log": "logging.basicConfig(stream=sys.stderr); logging.error(evil)",
    "a warning": "warnings.warn(evil)",
    "a table": "table(evil, [evil], [[evil], [3]])",
    "a write": "sys.stdout.write(evil); sys.stdout.writelines([evil])",
    "an uncaught error": "raise ValueError(evil)",
}


def _acting(text):
    return {letter for letter in text if unicodedata.category(letter) in ACTS} - {"\n", "\t"}


def test_no_letter_acts():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(every)
    assert not _acting(shown) and "\n" not in shown and "\t" not in shown
    assert printable("Zoë's 12\u00a0000 €, 漢字, 😀") == "Zoë's 12\u00a0000 €, 漢字, 😀"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("door", DOORS)
def test_whatever_writes_is_cleaned(door, encoding, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHOWN.format(evil=EVIL, act=DOORS[door]).replace("\\ud800", "\\x00"))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, env={"PYTHONIOENCODING": encoding}, cwd=ROOT
    )
    raw = done.stdout + done.stderr
    assert b"pwn" in raw and b"\x1b[2J" not in raw and b"\x07" not in raw
    assert not _acting(raw.decode("latin-1" if encoding == "latin-1" else "utf-8"))
    assert b"link=" in raw, "markup is shown as it is written"


def test_an_error_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedpeft", "adapter", "info", EVIL.replace("\ud800", "")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0 and not _acting(done.stdout + done.stderr)
    assert done.stderr.count("\n") == 1 and "ok: all well" in done.stderr


def test_every_process_has_the_door_and_only_the_door_draws():
    """An entry point without `clean_output`, or a console of somebody's own, opens the hole again."""
    for room in ("fedpeft", "server", "clients", "simulations/fedpeft_simulations"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            if "bench" in path.parts or path.name == "baselines_process.py":  # it prints to a log
                continue
            if "__main__" in text and path.name != "__main__.py":
                assert "with clean_output():" in text, path
            names = {node.func.id for node in ast.walk(ast.parse(text)) if _called(node)}
            assert path.name == "output.py" or "Console" not in names, path
            assert "from_markup" not in text, path


def _called(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
