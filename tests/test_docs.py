"""The documentation says what is so: its commands run, its links lead somewhere, its references are whole."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "recipes" / "README.md", *sorted((DOCS / "how-to").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n\n\Z")


def _site():
    spec = importlib.util.spec_from_file_location("site_pages", DOCS / "_site" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blocks(text):
    """Language and content of the code blocks of a page that are to be run, in order."""
    for match in re.finditer(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not NOT_RUN.search(text[: match.start()]):
            yield match.groups()


def _statements(script):
    """A shell script as commands of fedpeft, each alone, and the text between them."""
    lines = script.replace("\\\n", " ").splitlines(keepends=True)
    rest = ""
    for line in lines:
        if line.startswith("fedpeft ") and rest.count("<<'END'") == rest.count("\nEND\n"):
            yield rest
            yield line
            rest = ""
        else:
            rest += line
    yield rest


def _run_shell(script, app):
    """Commands of fedpeft run in this process, which has torch already; all else in a shell."""
    for statement in filter(str.strip, _statements(script)):
        if statement.startswith("fedpeft "):
            shown = CliRunner().invoke(app, shlex.split(statement, comments=True)[1:])
            assert shown.exit_code == 0, f"{statement}{shown.output}\n{shown.exception!r}"
        else:
            subprocess.run(["bash", "-euc", statement], check=True, capture_output=True)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_run(path, tmp_path, monkeypatch):
    from fedpeft.adapters import detach
    from fedpeft.cli import build_app

    monkeypatch.chdir(tmp_path)
    shutil.copytree(DOCS / "recipes", tmp_path / "docs" / "recipes")  # as in a clone, where a user types them
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    session, app = {"__name__": "__main__"}, build_app()
    try:
        for language, content in _blocks(path.read_text(encoding="utf-8")):
            if language == "python":
                exec(compile(content, path.name, "exec"), session)
            else:
                _run_shell(content, app)
    finally:
        detach()


def test_all_other_commands_are_marked_as_not_run():
    runbooks = [ROOT / folder / "kit" / "RUNBOOK.md" for folder in ("clients", "server")]
    for path in [*DOCS.rglob("*.md"), *runbooks]:
        if path not in PAGES and path.parent.name != "api":
            assert not list(_blocks(path.read_text(encoding="utf-8"))), path


def test_the_reference_holds_every_setting_and_every_command():
    import typer

    from fedpeft.cli import build_app
    from fedpeft.config.hints import paths

    site = _site()
    settings, commands = site.settings(), site.commands()
    for name in paths():
        section, _, key = name.rpartition(".")
        part = settings.split(f"## [{section}]", 1)[1].split("\n## ", 1)[0]
        assert f"| `{key}` |" in part, name

    def names(command, name):
        inner = getattr(command, "commands", None)
        return [name] if inner is None else [n for key in inner for n in names(inner[key], f"{name} {key}")]

    for name in names(typer.main.get_command(build_app()), "fedpeft"):
        assert re.search(rf"^##+ {name}$", commands, re.MULTILINE), name


def _links(text):
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in target]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.stem
)
def test_links_lead_to_files_or_to_generated_pages(path):
    generated = {(DOCS / uri).resolve() for uri in _site().pages()}
    for target in filter(None, _links(path.read_text(encoding="utf-8"))):
        place = (path.parent / target).resolve()
        assert place.exists() or place in generated, target


def test_links_of_a_page_lead_to_no_file_outside_of_the_site():
    site = _site()
    sources = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")}
    for uri, text in (sources | site.pages()).items():
        for target in _links(site.as_shown(text, uri)):
            assert (DOCS / uri).parent.joinpath(target).resolve().is_relative_to(DOCS), f"{uri}: {target}"


def test_every_page_has_its_place_in_the_navigation():
    named = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | set(_site().pages())
    listed = {uri for uri in pages if re.match(r"(decisions|examples)/0|cards/(?!index)", uri)}
    assert named == pages - listed


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 60
