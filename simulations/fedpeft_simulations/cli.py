"""``fedpeft simulate``, ``base`` and ``data``: what a researcher types."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from fedpeft.cli.output import JSON_OPTION, emit, leave_interrupted, table
from fedpeft.cli.scenario import SCENARIO, SCENARIO_HELP, SET, scenario_config

if TYPE_CHECKING:
    from fedpeft.config import Config
    from fedpeft_simulations.private_tuning import Tuned

StoredType = Literal["bfloat16", "float32"]


def register(app: typer.Typer) -> None:
    """Add the commands of this package."""
    app.command("simulate")(simulate)
    base = typer.Typer(
        help="Bases: import a GGUF file, describe one, rebuild the embedded one.", no_args_is_help=True
    )
    base.command("import")(import_base)
    base.command("build")(build_base)
    base.command("info")(base_info)
    data = typer.Typer(help="Records of a scenario.", no_args_is_help=True)
    data.command("show")(show_data)
    data.command("write")(write_data)
    data.command("fetch")(fetch_data)
    privacy = next(group.typer_instance for group in app.registered_groups if group.name == "privacy")
    assert privacy is not None
    privacy.command("tune")(tune)
    app.add_typer(base, name="base")
    app.add_typer(data, name="data")


def simulate(
    scenario: str | None = SCENARIO,
    set_: list[str] = SET,
    out: Path | None = typer.Option(None, "--out", help="Run directory; default: runs/<name>."),
    resume: bool = typer.Option(
        False, "--resume", help="Continue a run that was interrupted; with --out only."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an older run at --out."),
    track: list[str] = typer.Option(
        [], "--track", help="Also send figures to tensorboard, mlflow or wandb; may be given many times."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Run a whole federation on this machine: train, compress, protect, attack, export."""
    from fedpeft.errors import ConfigError

    if resume and (overwrite or scenario or set_):
        raise ConfigError("--resume continues a run as it was started; give it --out only")
    config, target = _started(out) if resume else _chosen(scenario, set_, out, quiet, as_json)

    from fedpeft_simulations.federation_run import run
    from fedpeft_simulations.print_summary import print_summary
    from fedpeft_simulations.progress import Mode, progress

    mode: Mode = "resume" if resume else "overwrite" if overwrite else "new"
    try:
        with progress(quiet=quiet or as_json) as report:
            store = run(config, target, mode, report, track)
    except KeyboardInterrupt:
        leave_interrupted(_continuation(target))
    emit(store.summary, as_json, lambda: print_summary(store))


def tune(
    scenario: str | None = SCENARIO,
    set_: list[str] = SET,
    tries: list[str] = typer.Option(
        ..., "--try", help="key=value,value: what is tried, all combinations; repeatable."
    ),
    trials: int = typer.Option(0, min=0, help="Combinations to try, drawn by run.seed; 0: all."),
    share: float = typer.Option(0.3, help="Share of privacy.epsilon that all trials together may spend."),
    rounds: int = typer.Option(2, min=1, help="Rounds of a trial."),
    public: bool = typer.Option(False, "--public", help="Judge trials on public records (data.test)."),
    out: Path = typer.Option(..., "--out", help="Folder to make: trials, run, tuned.toml, tuning.json."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Choose settings by short private trials and run with them, all within privacy.epsilon; a simulation."""
    from fedpeft.config.scenarios import load_scenario
    from fedpeft_simulations.private_tuning import Search, candidates
    from fedpeft_simulations.private_tuning import tune as search
    from fedpeft_simulations.progress import progress

    def configure(more: Sequence[str]) -> Config:
        return load_scenario(scenario, [*set_, *more]).config

    grid = candidates(tries, trials, scenario_config(scenario, set_, as_json=as_json).run.seed)
    wanted = Search(grid, share, rounds, "public" if public else "released")
    with progress(quiet=quiet or as_json) as report:
        tuned = search(configure, wanted, out, report)
    emit({**asdict(tuned), "run": str(tuned.run)}, as_json, lambda: _show_tuned(tuned))


def _show_tuned(tuned: Tuned) -> None:
    head = ("settings", "loss", "± by noise", "noise mult.", "epsilon so far")
    rows = [
        (
            " ".join(t.settings),
            f"{t.loss:.4f}",
            f"{t.error:.4f}",
            f"{tuned.trial_noise:g}",
            f"{t.epsilon:.3g}",
        )
        for t in tuned.trials
    ]
    chosen = (f"run: {' '.join(tuned.chosen)}", "", "", f"{tuned.noise:g}", f"{tuned.epsilon:.4g}")
    table(f"private trials, delta {tuned.delta:g}", head, [*rows, chosen])


def _continuation(target: Path) -> str:
    """How an interrupted run goes on."""
    if not (target / "config.toml").exists():
        return "nothing was written yet; give the same command again"
    return f"continue with: fedpeft simulate --out {shlex.quote(str(target))} --resume"


def _started(out: Path | None) -> tuple[Config, Path]:
    """Settings and folder of a run that was started before."""
    from fedpeft.runstore import RunStore

    target = out or Path("runs") / "embedded"
    return RunStore.open(target).config, target


def _chosen(
    scenario: str | None, overrides: list[str], out: Path | None, quiet: bool, as_json: bool
) -> tuple[Config, Path]:
    """Settings and folder of a new run."""
    from fedpeft.config.scenarios import load_scenario

    config = (
        load_scenario(scenario, overrides).config
        if quiet
        else scenario_config(scenario, overrides, as_json=as_json)
    )
    return config, out or Path("runs") / config.run.name


def import_base(
    file: Path = typer.Argument(help="A GGUF file, as llama.cpp and Ollama keep models."),
    out: Path = typer.Option(..., "-o", "--out", help="Folder to write."),
    dtype: StoredType = typer.Option("bfloat16", help="Type of the written weights."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the model of a GGUF file as a base folder, its weights dequantised."""
    from fedpeft.bases.gguf import import_gguf

    made = import_gguf(file, out, dtype)
    facts = {
        "folder": str(made.folder),
        "architecture": made.architecture,
        "parameters": made.parameters,
        "sha256": made.sha256,
    }
    emit(facts, as_json, lambda: typer.echo("\n".join(f"{key}: {value}" for key, value in facts.items())))


def build_base(
    out: Path = typer.Option(..., "-o", "--out", help="Folder to write."),
    steps: int | None = typer.Option(None, help="Optimiser steps; default: the recipe's fixed count."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Make the embedded base again from its seeded recipe."""
    from fedpeft.errors import ConfigError
    from fedpeft_simulations.embedded import recipe

    if out.exists():
        raise ConfigError(f"{str(out)!r} exists; choose another --out")
    recipe.build(out, steps or recipe.STEPS, progress=None if as_json else typer.echo)
    base_info(out, as_json)


def base_info(
    model: Path | None = typer.Argument(None, help="Model folder; none: the embedded base."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Name, size and content hash of a base."""
    from fedpeft.bases import load_base
    from fedpeft.config.models import EMBEDDED, BaseConfig

    base = load_base(BaseConfig(model=EMBEDDED if model is None else str(model)))
    facts = {
        "name": base.name,
        "folder": str(base.folder),
        "sha256": base.sha256,
        "parameters": base.parameters,
        "quantisation": base.quantisation,
        "dtype": base.dtype,
        "device": base.device,
    }
    emit(facts, as_json, lambda: typer.echo("\n".join(f"{key}: {value}" for key, value in facts.items())))


def show_data(
    scenario: str | None = SCENARIO,
    set_: list[str] = SET,
    samples: int = typer.Option(2, min=1, help="Records per organisation."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Print sample records of each organisation."""
    from dataclasses import asdict

    from fedpeft_simulations.organisations import load_federation

    federation = load_federation(scenario_config(scenario, set_, as_json=as_json))
    shown = {item.name: item.train[:samples] for item in federation.organisations}
    sizes = {
        item.name: {"train": len(item.train), "validation": len(item.validation), "test": len(item.test)}
        for item in federation.organisations
    }
    records = {name: [asdict(record) for record in group] for name, group in shown.items()}
    payload = {"organisations": records, "sizes": sizes, "global_test": len(federation.test)}
    payload |= {"notes": federation.notes.lines()}

    def text() -> None:
        for name, group in shown.items():
            counts = ", ".join(f"{count} {part}" for part, count in sizes[name].items())
            typer.secho(f"\n{name} ({counts})", bold=True)
            for record in group:
                typer.echo(f"{record.prompt}{record.completion}\n")
        typer.echo(f"global test: {len(federation.test)} records")
        for note in federation.notes.lines():
            typer.echo(f"note: {note}")

    emit(payload, as_json, text)


def write_data(
    out: Path = typer.Argument(help="Folder to write; one JSONL file per organisation, and test.jsonl."),
    scenario: str | None = typer.Option(None, "--scenario", help=SCENARIO_HELP),
    set_: list[str] = SET,
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the training records of each organisation of a scenario to a file of its own.

    A deployment can then be tried with them: `fedpeft node data add`.
    """
    from fedpeft.data import write_records
    from fedpeft_simulations.organisations import load_federation

    federation = load_federation(scenario_config(scenario, set_, as_json=as_json))
    groups = {item.name: item.train for item in federation.organisations} | {"test": federation.test}
    for name, records in groups.items():
        write_records(out / f"{name}.jsonl", records)
    counts = {str(out / f"{name}.jsonl"): len(records) for name, records in groups.items()}
    emit(counts, as_json, lambda: typer.echo("\n".join(f"{path}: {n} records" for path, n in counts.items())))


def fetch_data(
    name: str = typer.Argument(
        help="flowertune/general-nlp, flowertune/finance, flowertune/medical or flowertune/coding."
    ),
    out: Path = typer.Option(..., "-o", "--out", help="JSONL file to write."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Fetch a public data set by name from the Hugging Face Hub, as records for a trial."""
    from fedpeft_simulations.public_tasks import TEMPLATE, fetch

    facts = {"file": str(out), "records": fetch(name, out), "template": TEMPLATE}
    emit(
        facts, as_json, lambda: typer.echo(f"{out}: {facts['records']} records; data.template = {TEMPLATE!r}")
    )
