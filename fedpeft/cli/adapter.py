"""``fedpeft adapter``: pack, unpack and look at adapter files; evaluate and merge adapters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table
from fedpeft.errors import ConfigError

OUT_OPTION = typer.Option(..., "-o", "--out", help="What to write; never overwritten.")


def register(app: typer.Typer) -> None:
    """Add the ``adapter`` commands."""
    group = typer.Typer(help="Adapter files and folders of any PEFT method.", no_args_is_help=True)
    for command in (pack, unpack, info, evaluate, merge):
        group.command({"evaluate": "eval"}.get(command.__name__, command.__name__))(command)
    app.add_typer(group, name="adapter")


def _fresh(path: Path) -> Path:
    if path.exists():
        raise ConfigError(f"{str(path)!r} exists; choose another --out")
    return path


def pack(
    folder: Path = typer.Argument(help="A PEFT adapter folder."),
    out: Path = OUT_OPTION,
    density: float = typer.Option(0.2, help="Share of the compressed values that is kept."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compress an adapter folder into one self-describing file."""
    from fedpeft.adapters import pack as packing

    _show_info(packing.pack(folder, _fresh(out), density), as_json)


def unpack(
    file: Path = typer.Argument(help="A packed adapter."),
    out: Path = OUT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Restore a packed adapter to a folder that plain peft loads."""
    from fedpeft.adapters import pack as packing

    packing.unpack(file, _fresh(out))
    emit({"folder": str(out)}, as_json, lambda: typer.echo(f"unpacked to {out}"))


def info(file: Path = typer.Argument(help="A packed adapter."), as_json: bool = JSON_OPTION) -> None:
    """Show what a packed adapter holds, after checking its digest."""
    from fedpeft.adapters import pack as packing

    _show_info(packing.info(file), as_json)


def _show_info(facts: object, as_json: bool) -> None:
    payload = asdict(facts)  # pyright: ignore[reportArgumentType]
    emit(payload, as_json, lambda: table("packed adapter", ("what", "value"), payload.items()))


def evaluate(
    adapter: Path = typer.Argument(help="A run directory or an adapter folder."),
    data: Path | None = typer.Option(None, help="Records; needed for an adapter folder."),
    prompt: str = typer.Option("prompt", help="Column with the prompt."),
    completion: str = typer.Option("completion", help="Column with the completion or label."),
    base: str | None = typer.Option(None, help="Base; default: the one the adapter names."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Held-out loss and accuracy of an adapter, loaded by plain peft."""
    from fedpeft.adapters.evaluation import evaluate_folder, evaluate_run
    from fedpeft.config.models import DataConfig

    if not adapter.is_dir():
        raise ConfigError(f"{str(adapter)!r} is no folder; give a run directory or an adapter folder")
    if (adapter / "config.toml").is_file():
        result = evaluate_run(adapter)
    elif data is None:
        raise ConfigError("an adapter folder needs --data with the records to evaluate on")
    else:
        columns = DataConfig(prompt=prompt, completion=completion)
        result = evaluate_folder(adapter, data, base, columns)
    accuracy = "n/a" if result.accuracy is None else f"{result.accuracy:.3f}"
    emit(
        asdict(result),
        as_json,
        lambda: typer.echo(f"loss {result.loss:.4f} · accuracy {accuracy} · {result.count} records"),
    )


def merge(
    adapter: Path = typer.Argument(help="A run directory or an adapter folder."),
    out: Path = OUT_OPTION,
    base: str | None = typer.Option(None, help="Base; default: the one the adapter names."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the base with the adapter merged into its (dequantised) weights."""
    from fedpeft.adapters.evaluation import merge_folder

    folder = adapter / "adapter" if (adapter / "config.toml").is_file() else adapter
    merge_folder(folder, _fresh(out), base)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    emit({"folder": str(out), "bytes": size}, as_json, lambda: typer.echo(f"{out}: {quantity(size)}"))
