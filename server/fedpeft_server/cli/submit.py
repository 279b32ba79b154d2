"""Handing a run to the service: everything that can be found wrong with it is found before it is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedpeft.config import Config, config_hash, dump_config, load_config
from fedpeft.data import Notes
from fedpeft.errors import ConfigError
from fedpeft.protocol.enrolment import valid_name
from fedpeft.runstore import RunStore, write_atomic, write_json
from fedpeft.runstore.files import sync_folder
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import RunStatus, ServerHome, write_status

if TYPE_CHECKING:
    from fedpeft.adapters.coverage import Coverage
    from fedpeft.bases import Base
    from fedpeft.data import Record


class Files(NamedTuple):
    """Files that go with a scenario.

    Attributes:
        labels: JSON list of the classes; needed for sequence classification.
        eval_data: held-out records of the coordinator's own, for rounds and result; None: no held-out loss.
    """

    labels: Path | None = None
    eval_data: Path | None = None


def submit(
    home: ServerHome, file: Path, overrides: Sequence[str], name: str | None, files: Files
) -> dict[str, Any]:
    """Write a run directory that the service will find.

    Args:
        home: the coordinator.
        file: scenario.
        overrides: ``key=value``.
        name: of the run; None: as the scenario names it.
        files: what goes with it.

    Returns:
        Facts about the run: name, rounds, nodes, base, what its adapter changes of it, what its privacy plan
        promises (or nothing), number of records on which it is judged, notes on data and chat template.

    Raises:
        FedPeftError: settings, base, labels, records, number of nodes or privacy plan are not as they must
            be.
    """
    from fedpeft.evaluation.held_out import load_run_base

    config = load_config(file, [*overrides, *([f"run.name={json.dumps(name)}"] if name else [])])
    name = _free_name(home, config.run.name)
    _check_nodes(home, config)
    classes = _classes(config, files.labels)
    notes = Notes()
    records = _records(config, files.eval_data, classes, notes)
    notes.add(_check_tokens(config, classes, records))
    base = load_run_base(config, classes)
    config = _resolved(config, base.sha256)
    promise, coverage = _checked(config, base)
    run = _write(home, name, config, classes, records)
    return {
        "run": run.name,
        "path": str(run),
        "rounds": config.federation.rounds,
        "nodes": config.federation.nodes,
        "base": config.base.sha256,
        "adapter": coverage.facts | {"text": coverage.text},
        "privacy": promise,
        "judged": len(records),
        "notes": notes.lines(),
    }


def _free_name(home: ServerHome, name: str) -> str:
    if not valid_name(name):
        raise ConfigError(f"run name {name!r}: use 1 to 64 letters, digits, '.', '_' or '-' (--name)")
    if (home.runs / name).exists():
        raise ConfigError(f"there is a run {name!r} already; give another --name")
    return name


def _check_nodes(home: ServerHome, config: Config) -> None:
    """A run must not wait for nodes that nobody has admitted."""
    enrolled, wanted = Registry(home).enrolled(), config.federation.nodes
    if wanted > len(enrolled):
        raise ConfigError(
            f"federation.nodes = {wanted}, but {len(enrolled)} are enrolled "
            f"({', '.join(enrolled) or 'none'}): enrol more, or set federation.nodes"
        )


def _classes(config: Config, labels: Path | None) -> list[str]:
    """The agreed classes of a labelled task; none for free text."""
    if labels is None:
        if config.base.task == "sequence-classification":
            raise ConfigError("base.task = 'sequence-classification' needs --labels: a JSON list of classes")
        return []
    try:
        content: Any = json.loads(labels.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"--labels {str(labels)!r} is no readable JSON file") from None
    classes = cast("list[Any]", content) if isinstance(content, list) else []
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ConfigError(f"--labels {str(labels)!r} must hold a JSON list of different words")
    return cast("list[str]", classes)


def _records(config: Config, eval_data: Path | None, classes: Sequence[str], notes: Notes) -> list[Record]:
    """The coordinator's own held-out records; of a labelled task each must have one of its classes."""
    if eval_data is None:
        return []
    from fedpeft.data import label_set, read_records

    records = read_records(eval_data, config.data, notes=notes)
    if not records:
        raise ConfigError(f"--eval-data {str(eval_data)!r} holds no record")
    if classes and (unknown := len(set(label_set(records)) - set(classes))):
        raise ConfigError(f"--eval-data {str(eval_data)!r} has {unknown} labels that --labels does not list")
    return records


def _check_tokens(config: Config, classes: Sequence[str], records: Sequence[Record]) -> Notes:
    """Records that tokenizer or chat template of the base refuse are found here, not by all nodes."""
    from fedpeft.bases.load import load_tokenizer
    from fedpeft.data import Record, check_records

    chat = Record("a", "b", messages=(("user", "a"), ("assistant", "b")), place="data.messages")
    tried = [chat] if config.data.messages is not None and not classes else []
    facts = (load_tokenizer(config.base), config.data, config.base.task, classes or None)
    return check_records([*tried, *records], *facts)


def _resolved(config: Config, sha256: str) -> Config:
    """The config with the content of its base pinned, as all nodes must have it."""
    base = config.base.model_copy(update={"sha256": sha256})
    federation = config.federation.model_copy(update={"backend": "deployment"})
    return config.model_copy(update={"base": base, "federation": federation})


def _checked(config: Config, base: Base) -> tuple[str, Coverage]:
    """What the privacy plan promises, and how much of the base the adapter changes.

    Raises:
        FedPeftError: the adapter does not fit the base, which may pass no gradient to it, or the plan's noise
            swamps the run.
    """
    from fedpeft.adapters import attach
    from fedpeft.bases.probe import check_gradient
    from fedpeft.run_plan import RunPlan

    attached = attach(base, config.adapter, config.run.seed)
    check_gradient(attached.model, base.tokenizer, config.base.model, base.task)
    return RunPlan.from_config(config, attached.layout.size).checked().claim, attached.spec.coverage


def _write(
    home: ServerHome, name: str, config: Config, classes: Sequence[str], records: Sequence[Record]
) -> Path:
    """Write the directory beside its place and move it there: the service sees all of it or nothing."""
    from fedpeft.data import write_records

    run, draft = home.runs / name, home.runs / f".{name}.{os.getpid()}"
    try:
        draft.mkdir(mode=0o700)
        write_atomic(draft / "config.toml", dump_config(config).encode())
        write_json(draft / "data" / "labels.json", list(classes))
        if records:
            write_records(RunStore(draft).test, records)
        write_status(draft, RunStatus("submitted").to("submitted"))
        home.record("submit", run=run.name, config=config_hash(config))
        draft.rename(run)
        sync_folder(run.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return run
