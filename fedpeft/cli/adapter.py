"""``fedpeft adapter``: pack, unpack, list and compare adapter files; evaluate and merge adapters."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity
from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.cli.packing import Prepared
    from fedpeft.packing.pack import PackInfo

OUT_OPTION = typer.Option(..., "-o", "--out", help="What to write; never overwritten.")
EITHER = "An adapter folder or a packed adapter."
PROMPT = typer.Option("prompt", help="Column with the prompt.")
COMPLETION = typer.Option("completion", help="Column with the completion or label.")
BASE = typer.Option(None, help="Base model; default: the one that the adapter names.")


def register(app: typer.Typer) -> None:
    """Add the ``adapter`` commands."""
    group = typer.Typer(help="Adapter files and folders of any PEFT method.", no_args_is_help=True)
    names = {"evaluate": "eval", "show_list": "list"}
    for command in (pack, unpack, info, show_list, diff, evaluate, merge):
        group.command(names.get(command.__name__, command.__name__))(command)
    app.add_typer(group, name="adapter")


def _fresh(path: Path) -> Path:
    if os.path.lexists(path):
        raise ConfigError(f"{str(path)!r} exists; choose another --out")
    return path


def pack(
    adapter: Path = typer.Argument(help="A PEFT adapter folder, or a run directory."),
    out: Path | None = typer.Option(None, "-o", "--out", help="File to write; never overwritten."),
    target_size: str | None = typer.Option(None, help="Largest file size, such as 300kB."),
    ratio: float | None = typer.Option(None, help="Smallest ratio of weights file to packed file."),
    max_loss_change: str | None = typer.Option(
        None, help="Largest increase of the held-out loss, such as 1%."
    ),
    step: float | None = typer.Option(
        None, help="Coarseness of levels, in a tensor's r.m.s. Default: 0.5 for LoRA, else 0.1."
    ),
    density: float | None = typer.Option(None, help="Ternarise changes and keep this share of them."),
    alpha: float | None = typer.Option(None, help="Ternarise all as ComPEFT does, with this alpha."),
    alpha_grid: bool = typer.Option(
        False, "--alpha-grid", help="Try ComPEFT's grid of densities and alphas, take the best."
    ),
    codec: str | None = typer.Option(None, help="Codec that reaches the goal: levels (default) or ternary."),
    dense: str = typer.Option(
        "levels", help="Codec of factors that start at random: levels, int8, dense-bf16 or dense-fp32."
    ),
    keep: list[str] = typer.Option([], help="Keep tensors whose name contains this in 16 bits; repeatable."),
    seed: int | None = typer.Option(None, help="Seed of the fedpeft run; default: its run directory's."),
    records: Path | None = typer.Option(
        None, "--eval", help="File of held-out records, or a run directory with its own."
    ),
    prompt: str = PROMPT,
    completion: str = COMPLETION,
    base: str | None = BASE,
    show_table: bool = typer.Option(False, "--table", help="Print size against quality."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compress an adapter folder into one self-describing file, optionally to a given size or loss."""
    from fedpeft.cli.packing import Goal, HeldOut, prepare, recipe_of

    goal = Goal(target_size, ratio, max_loss_change, alpha_grid)
    goal.check(step, density)
    recipe = replace(recipe_of(codec, step, density, alpha, dense), keep=tuple(keep), seed=seed)
    if out is None and not show_table:
        raise ConfigError("nothing to do: give -o FILE to pack, or --table for the choices")
    if out is not None:
        _fresh(out)
    held_out = HeldOut(records, prompt, completion, base)
    prepared = prepare(adapter, recipe, held_out, evaluated=goal.evaluated)
    rows = _table(prepared, as_json) if show_table else None
    facts = prepared.pack(goal, density, out) if out is not None else None
    _report(rows, facts, as_json)


def _table(prepared: Prepared, as_json: bool) -> list[dict[str, Any]]:
    """Measure size against quality and, for people, print it."""
    from fedpeft.cli.packing_tables import show_points
    from fedpeft.packing.search import table

    points = list(table(prepared.files, prepared.recipe, prepared.evaluator))
    if not as_json:
        show_points(points, evaluated=prepared.evaluator is not None)
    return [asdict(point) for point in points]


def _report(rows: list[dict[str, Any]] | None, facts: PackInfo | None, as_json: bool) -> None:
    """Print what was packed; for machines with the table, if there is one."""
    from fedpeft.cli.packing_tables import show_info

    payload = facts.as_json() if facts is not None else {}
    if rows is not None:
        payload["table"] = rows
    if as_json or facts is not None:
        emit(payload, as_json, lambda: None if facts is None else show_info(facts))


def unpack(
    file: Path = typer.Argument(help="A packed adapter."),
    out: Path = OUT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Restore a packed adapter to a folder that plain peft loads."""
    from fedpeft.packing import pack as packing

    packing.unpack(file, _fresh(out))
    emit({"folder": str(out)}, as_json, lambda: typer.echo(f"unpacked to {out}"))


def info(file: Path = typer.Argument(help="A packed adapter."), as_json: bool = JSON_OPTION) -> None:
    """Show the contents of a packed adapter, after checking its digest and all of its content."""
    from fedpeft.cli.packing_tables import show_info
    from fedpeft.packing import pack as packing

    facts = packing.info(file)
    emit(facts.as_json(), as_json, lambda: show_info(facts))


def show_list(
    folder: Path = typer.Argument(help="A folder with packed adapters."), as_json: bool = JSON_OPTION
) -> None:
    """List packed adapters by base, from their headers alone: digests are checked on info and unpack."""
    from fedpeft.cli.packing_tables import library_json, show_library
    from fedpeft.packing.library import Library

    library = Library(folder)
    emit(library_json(library), as_json, lambda: show_library(library))


def diff(
    first: Path = typer.Argument(help=EITHER),
    second: Path = typer.Argument(help=EITHER),
    rows: int = typer.Option(10, help="How many tensors to print, those that differ most."),
    exit_code: bool = typer.Option(False, "--exit-code", help="Exit with 1 if they differ."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show how two adapters differ: values, settings, and for LoRA the weight change."""
    from fedpeft.cli.packing_tables import show_difference
    from fedpeft.packing.diff import difference

    differences = difference(first, second)
    emit(
        asdict(differences) | {"same": differences.same}, as_json, lambda: show_difference(differences, rows)
    )
    if exit_code and not differences.same:
        raise typer.Exit(1)


def evaluate(
    adapter: Path = typer.Argument(help="A run directory or an adapter folder."),
    data: Path | None = typer.Option(None, help="Records; needed for an adapter folder."),
    prompt: str = PROMPT,
    completion: str = COMPLETION,
    base: str | None = BASE,
    generate: bool = typer.Option(
        False, "--generate", help="Also generate answers, greedily: exact match, token F1, ROUGE-L."
    ),
    max_new_tokens: int = typer.Option(64, min=1, help="Most tokens of a generated answer."),
    tasks: str | None = typer.Option(
        None, help="Run these lm-eval tasks instead, names joined by commas (extra lm-eval)."
    ),
    include_path: Path | None = typer.Option(None, help="Folder with lm-eval's files (YAML) of --tasks."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Held-out figures of an adapter, loaded by plain peft; with --generate and --tasks beside its base's."""
    from fedpeft.cli import evaluation
    from fedpeft.cli.show_progress import progress
    from fedpeft.config.models import DataConfig

    if not adapter.is_dir():
        raise ConfigError(f"{str(adapter)!r} is no folder; give a run directory or an adapter folder")
    held_out = evaluation.HeldOut(adapter, data, base, DataConfig(prompt=prompt, completion=completion))
    with progress(quiet=as_json, to_stderr=True):
        if tasks is not None or include_path is not None:
            result = evaluation.on_tasks(held_out, tasks, include_path, generate)
        elif generate:
            result = evaluation.with_answers(held_out, max_new_tokens)
        else:
            result = evaluation.plain(held_out)
    emit(result.payload, as_json, result.show)


def merge(
    adapter: Path = typer.Argument(help="A run directory or an adapter folder."),
    out: Path = OUT_OPTION,
    base: str | None = BASE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the base with the adapter merged into its (dequantised) weights."""
    from fedpeft.evaluation.adapter_folder import merge_folder

    folder = adapter / "adapter" if (adapter / "config.toml").is_file() else adapter
    merge_folder(folder, _fresh(out), base)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    emit({"folder": str(out), "bytes": size}, as_json, lambda: typer.echo(f"{out}: {quantity(size)}"))
