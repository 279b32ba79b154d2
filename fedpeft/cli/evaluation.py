"""``fedpeft adapter eval``: what it is asked, and how its figures are printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.cli.output import table
from fedpeft.config.models import DataConfig
from fedpeft.errors import ConfigError

if TYPE_CHECKING:
    from fedpeft.evaluation.adapter_folder import Subject
    from fedpeft.evaluation.comparison import Figures

COLUMNS = ("", "loss", "accuracy", "exact match", "token F1", "ROUGE-L", "unfinished")


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on what.

    Attributes:
        adapter: a run directory or an adapter folder.
        data: records; None: the run's own.
        base: model folder or id; None: the one that the adapter names.
        columns: columns of the records.
    """

    adapter: Path
    data: Path | None
    base: str | None
    columns: DataConfig

    @property
    def is_run(self) -> bool:
        """Whether it is a run directory, with held-out records of its own."""
        return (self.adapter / "config.toml").is_file()

    def subject(self) -> Subject:
        """Adapter, base and records.

        Raises:
            FedPeftError: as `fedpeft.evaluation.adapter_folder.Subject`; a folder without records.
        """
        from fedpeft.evaluation.adapter_folder import Subject

        if self.is_run:
            if self.data is not None or self.base is not None:
                raise ConfigError(
                    "a run is evaluated on its own base and global test; for others give its folder "
                    f"{str(self.adapter / 'adapter')!r}"
                )
            return Subject.of_run(self.adapter)
        if self.data is None:
            raise ConfigError("an adapter folder needs --data with the records to evaluate on")
        return Subject.of_folder(self.adapter, self.data, self.base, self.columns)


@dataclass(frozen=True)
class Result:
    """Figures for machines, and how people see them."""

    payload: dict[str, Any]
    show: Callable[[], None]


def plain(held_out: HeldOut) -> Result:
    """Loss and, of labels, accuracy."""
    from fedpeft.evaluation.adapter_folder import load_base_of

    figures = load_base_of(held_out.subject()).adapted().figures()
    accuracy = "n/a" if figures.accuracy is None else f"{figures.accuracy:.3f}"
    line = f"loss {figures.loss:.4f} · accuracy {accuracy} · {figures.count} records"
    return Result(asdict(figures), lambda: typer.echo(line))


def with_answers(held_out: HeldOut, max_new_tokens: int) -> Result:
    """The same of adapter and base, and figures of the answers that both generate."""
    from fedpeft.evaluation.comparison import compare

    both = compare(held_out.subject(), max_new_tokens)
    count = both.adapter.evaluation.count
    title = f"{count} held-out records, greedy answers of at most {max_new_tokens} tokens"
    named = {"base": both.base, "adapter": both.adapter}
    rows = [_cells(name, figures) for name, figures in named.items() if figures is not None]
    payload = {
        **_payload(both.adapter),
        "max_new_tokens": max_new_tokens,
        "base": None if both.base is None else _payload(both.base),
    }

    def show() -> None:
        table(title, COLUMNS, rows)
        if both.base is None:
            typer.echo("the base has no embeddings for tokens of the adapter's own: no figures of it")

    return Result(payload, show)


def _payload(figures: Figures) -> dict[str, Any]:
    return {**asdict(figures.evaluation), "generated": asdict(figures.answers)}


def _cells(name: str, figures: Figures) -> list[str]:
    accuracy, answers = figures.evaluation.accuracy, figures.answers
    shares = (answers.exact_match, answers.token_f1, answers.rouge_l, answers.unfinished)
    return [
        name,
        f"{figures.evaluation.loss:.4f}",
        "n/a" if accuracy is None else f"{accuracy:.3f}",
        *(f"{share:.3f}" for share in shares),
    ]


def on_tasks(held_out: HeldOut, tasks: str | None, files: Path | None, generate: bool) -> Result:
    """Scores of adapter and base in tasks of lm-eval."""
    from fedpeft.evaluation.adapter_folder import base_of, base_of_run
    from fedpeft.evaluation.lm_tasks import compare_on_tasks
    from fedpeft.runstore import RunStore

    if not tasks or files is None:
        raise ConfigError(
            "--tasks NAME[,NAME] needs --include-path FOLDER with the task files, and the reverse"
        )
    if held_out.data is not None or generate:
        raise ConfigError("--tasks bring records of their own: leave out --data and --generate")
    folder, names = held_out.adapter, [name.strip() for name in tasks.split(",") if name.strip()]
    if held_out.is_run:
        store = RunStore.open(folder)
        folder, base = store.adapter, base_of_run(store.config)
    else:
        base = base_of(folder, held_out.base)
    adapter, plain_base = compare_on_tasks(folder, base, names, files)
    rows = [
        [task, metric, f"{plain_base[task][metric]:.4f}", f"{value:.4f}"]
        for task, metrics in adapter.items()
        for metric, value in metrics.items()
    ]
    return Result(
        {"tasks": adapter, "base": plain_base},
        lambda: table("tasks of lm-eval", ("task", "metric", "base", "adapter"), rows),
    )
