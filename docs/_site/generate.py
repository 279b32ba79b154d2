"""Pages of the documentation that are made from the code; mkdocs calls this file as a hook.

Settings come from the pydantic models, commands from typer, examples, attack cards and runbooks from their
own files: none of them is written down twice.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
RUNBOOKS = {"clients": "node", "server": "coordinator"}
_PLACES = (
    (re.compile(r"\]\((?:\.\./)+attacks/cards\)"), "cards/index.md"),
    (re.compile(r"\]\((?:\.\./)+attacks/cards/([\w-]+)\.md\)"), r"cards/\1.md"),
    (re.compile(r"\]\((?:\.\./)+examples/(\w+)\.py\)"), r"examples/\1.md"),
    (re.compile(r"\]\((?:\.\./)+clients/kit/RUNBOOK\.md\)"), "runbooks/node.md"),
    (re.compile(r"\]\((?:\.\./)+server/kit/RUNBOOK\.md\)"), "runbooks/coordinator.md"),
)
"""Links to files of the repository outside of `docs`, and the pages that stand for them in the site."""

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
"""Stands above commands that no test runs."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to pages of the site, and say which commands no test runs."""
    return as_shown(markdown, page.file.src_uri)


def as_shown(markdown: str, uri: str) -> str:
    """The text of a page as the site shows it: its links lead to pages of the site alone."""
    up = "../" * uri.count("/")
    for pattern, place in _PLACES:
        markdown = pattern.sub(rf"]({up}{place})", markdown)
    return _NOT_RUN.sub(r"*Not run by the tests: \1.*", markdown)


def pages() -> dict[str, str]:
    """Text of every generated page by its place in the site."""
    cards = {f"cards/{path.name}": path.read_text() for path in sorted((ROOT / "attacks/cards").glob("*.md"))}
    runbooks = {
        f"runbooks/{name}.md": (ROOT / folder / "kit/RUNBOOK.md").read_text()
        for folder, name in RUNBOOKS.items()
    }
    examples = {
        f"examples/{path.stem}.md": _example(path) for path in sorted((ROOT / "examples").glob("*.py"))
    }
    decisions = {path.name: path.read_text() for path in sorted((ROOT / "docs/decisions").glob("0*.md"))}
    return {
        "reference/config.md": settings(),
        "reference/cli.md": commands(),
        "cards/index.md": _index("Attack cards", "One page per attack.", cards),
        "examples/index.md": _index("Examples", "Each runs in under a minute; the tests run all.", examples),
        "decisions/index.md": _index("Decisions", "Why things are as they are.", decisions),
        **cards,
        **runbooks,
        **examples,
    }


def settings() -> str:
    """The reference of all settings, section by section."""
    from fedpeft.config import Config

    intro = (
        "# Settings\n\nOf a scenario file (TOML) and of `--set section.name=value`. An unknown name is an "
        "error that names the nearest one. The JSON schema is printed by `fedpeft config schema`.\n"
    )
    return "\n".join([intro, *_sections(Config, "")])


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    rows, inner = list[str](), list[tuple[str, type[BaseModel]]]()
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            inner.append((f"{prefix}{name}", kind))
            continue
        default = field.get_default(call_default_factory=True)
        values = _values(schema["properties"][name], schema)
        rows.append(f"| `{name}` | {values} | {_toml(default)} | {_cell(field.description or '')} |")
    if prefix:
        yield f"## [{prefix.removesuffix('.')}]\n\n{(model.__doc__ or '').strip()}\n"
    if rows:
        yield "| setting | values | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, section in inner:
        yield from _sections(section, f"{name}.")


def _values(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """What a setting may be, in a few words."""
    if "$ref" in schema:
        return _values(whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole)
    if "anyOf" in schema:
        return " or ".join(_values(part, whole) for part in schema["anyOf"] if part.get("type") != "null")
    if choices := schema.get("enum") or schema.get("examples"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('items', {}), whole)}"
    if schema.get("type") == "object":
        return "table"
    words = {"minimum": "at least", "exclusiveMinimum": "above"}
    words |= {"maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{limit} {schema[key]:g}" for key, limit in words.items() if key in schema]
    kind = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text"}
    return ", ".join([kind.get(schema.get("type", ""), schema.get("type", "any")), *limits])


def _toml(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def commands() -> str:
    """The reference of all commands with their arguments and options."""
    from fedpeft.cli import build_app

    root = typer.main.get_command(build_app())
    intro = (
        "# Commands\n\n`--json` prints one JSON object for machines; [exit codes](../exit-codes.md) are "
        "documented. `fedpeft bench` is part of a checkout only.\n"
    )
    return "\n".join([intro, *_commands(root, "fedpeft")])


def _commands(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        if name != "fedpeft":
            yield f"## {name}\n\n{_prose(command)}\n"
        for part in sorted(inner):
            yield from _commands(inner[part], f"{name} {part}")
        return
    yield f"{'###' if name.count(' ') > 1 else '##'} {name}\n\n{_prose(command)}\n"
    rows = [_parameter(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield "| argument or option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _prose(command: Any) -> str:
    return re.sub(r"\n(?!\n)[ \t]*", "\n", (command.help or "").replace("\f", "")).strip()


def _parameter(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    default = parameter.default
    shown = "required" if parameter.required else "–" if callable(default) else _toml(_plain(default))
    help_ = getattr(parameter, "help", None) or ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {shown} | {_cell(help_)} |"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(value) if value else None
    return str(value) if isinstance(value, Path) else None


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _example(path: Path) -> str:
    """A page with the docstring of an example and its code."""
    source = path.read_text()
    doc = ast.get_docstring(ast.parse(source)) or ""
    title, _, rest = doc.partition("\n")
    code = source.split('"""', 2)[2].strip()
    return f'# {title.rstrip(".")}\n\n{rest.strip()}\n\n```python title="examples/{path.name}"\n{code}\n```\n'


def _index(title: str, text: str, entries: dict[str, str]) -> str:
    lines = [f"* [{_title(page)}]({uri.rsplit('/', 1)[-1]})" for uri, page in entries.items()]
    return f"# {title}\n\n{text}\n\n" + "\n".join(lines) + "\n"


def _title(page: str) -> str:
    heading = re.search(r"^# (.+)$", page, re.MULTILINE)
    return heading[1] if heading else "untitled"
