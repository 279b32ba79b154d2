"""Handing a run to the service: everything that can be found wrong with it is found before it is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedpeft.config import Config, config_hash, dump_config, load_config
from fedpeft.errors import ConfigError
from fedpeft.protocol.enrolment import valid_name
from fedpeft.runstore import RunStore, write_atomic, write_json
from fedpeft.runstore.files import sync_folder
from fedpeft_server.service.node_registry import Registry
from fedpeft_server.service.server_home import RunStatus, ServerHome, write_status

if TYPE_CHECKING:
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
        Facts about the run: name, rounds, nodes, base, what its privacy plan promises (or nothing), number
        of records on which it is judged.

    Raises:
        FedPeftError: settings, base, labels, records, number of nodes or privacy plan are not as they must
            be.
    """
    config = load_config(file, [*overrides, *([f"run.name={json.dumps(name)}"] if name else [])])
    name = _free_name(home, config.run.name)
    _check_nodes(home, config)
    classes = _classes(config, files.labels)
    records = _records(config, files.eval_data, classes)
    config = _resolved(config)
    _check_tokens(config, classes, records)
    promise = _promise(config, classes)
    run = _write(home, name, config, classes, records)
    return {
        "run": run.name,
        "path": str(run),
        "rounds": config.federation.rounds,
        "nodes": config.federation.nodes,
        "base": config.base.sha256,
        "privacy": promise,
        "judged": len(records),
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


def _records(config: Config, eval_data: Path | None, classes: Sequence[str]) -> list[Record]:
    """The coordinator's own held-out records; of a labelled task each must have one of its classes."""
    if eval_data is None:
        return []
    from fedpeft.data import label_set, read_records

    records = read_records(eval_data, config.data)
    if not records:
        raise ConfigError(f"--eval-data {str(eval_data)!r} holds no record")
    if classes and (unknown := len(set(label_set(records)) - set(classes))):
        raise ConfigError(f"--eval-data {str(eval_data)!r} has {unknown} labels that --labels does not list")
    return records


def _check_tokens(config: Config, classes: Sequence[str], records: Sequence[Record]) -> None:
    """Records that tokenizer or chat template of the base refuse are found here, not by all nodes."""
    from fedpeft.bases.load import load_tokenizer
    from fedpeft.data import Record, check_records

    chat = Record("a", "b", messages=(("user", "a"), ("assistant", "b")), place="data.messages")
    tried = [chat] if config.data.messages is not None and not classes else []
    facts = (load_tokenizer(config.base), config.data, config.base.task, classes or None)
    check_records([*tried, *records], *facts)


def _resolved(config: Config) -> Config:
    """The config with the content of its base pinned, as all nodes must have it."""
    from fedpeft.bases import base_folder, content_hash

    content = content_hash(base_folder(config.base), config.base.quantisation)
    if config.base.sha256 not in (None, content):
        raise ConfigError(f"base.sha256 = {config.base.sha256!r}, but the base here has {content}")
    base = config.base.model_copy(update={"sha256": content})
    federation = config.federation.model_copy(update={"backend": "deployment"})
    return config.model_copy(update={"base": base, "federation": federation})


def _promise(config: Config, classes: Sequence[str]) -> str:
    """What the privacy plan promises; one whose noise swamps the run is refused.

    The base is loaded for a run with a claim only: its layout says how many values bear noise.
    """
    if config.privacy.unit == "none":
        return ""
    from fedpeft.evaluation.held_out import load_run_base
    from fedpeft.run_plan import RunPlan

    return RunPlan.from_base(config, load_run_base(config, classes)).checked().claim


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
