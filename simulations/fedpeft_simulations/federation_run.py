"""One call that runs a whole federation: prepare, train, compare, judge, export, audit, sum up."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.adapters import Attached, attach, detach
from fedpeft.adapters.card import write_card
from fedpeft.adapters.export import export
from fedpeft.aggregation import FactorState
from fedpeft.bases import Base
from fedpeft.bases.probe import check_gradient
from fedpeft.config import Config
from fedpeft.config.checks import check_new
from fedpeft.data import Record, check_records, label_set, write_records
from fedpeft.errors import ConfigError, DataError
from fedpeft.evaluation.held_out import (
    HeldOut,
    classes,
    evaluation_event,
    in_order_of_head,
    load_run_base,
    write_predictions,
)
from fedpeft.exchange.layout import FloatVector
from fedpeft.progress_reports import at
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import RunStore, check_free, create_run, write_json
from fedpeft.runstore.summary import AuditFacts, RunSummary
from fedpeft.tracking import check_trackers, tracking
from fedpeft_attacks.audit_suite import audit
from fedpeft_attacks.memory.canaries import write_canaries
from fedpeft_attacks.report.risks import headline
from fedpeft_clients.rounds.run_home import Simulated, create_home
from fedpeft_server.rounds.checkpoints import latest
from fedpeft_server.rounds.final_adapter import final_round, load_checkpoint, load_final
from fedpeft_simulations.backends import run_federation
from fedpeft_simulations.baseline_training import TRAINED
from fedpeft_simulations.baselines import companion, private_config, results, run_baselines
from fedpeft_simulations.organisations import Federation, Organisation, load_federation
from fedpeft_simulations.plant_canaries import draw_canaries, planted
from fedpeft_simulations.plots import plot_run
from fedpeft_simulations.run_summary import card_facts, complete, summarise
from fedpeft_simulations.written_canaries import write_canaries_with

if TYPE_CHECKING:
    from fedpeft.evaluation.metrics import Evaluation
    from fedpeft_simulations.progress import Mode, Progress

State = FloatVector | FactorState


def run(config: Config, out: Path, mode: Mode, report: Progress, trackers: Sequence[str] = ()) -> RunStore:
    """Run a federation into a run directory, or continue one that was killed.

    Nothing is written before data, base and settings have been found good.

    Args:
        config: the settings; ignored by ``resume``, which uses the stored ones.
        out: the run directory.
        mode: make a new run, continue one, or replace an older one.
        report: receives each event.
        trackers: names of trackers that receive the figures of each event too.

    Returns:
        The finished run.

    Raises:
        FedPeftError: bad settings, data or base; too few valid replies; a directory that is taken.
    """
    started = time.monotonic()
    check_trackers(trackers)
    store = RunStore.open(out) if mode == "resume" else prepare(config, out, mode == "overwrite", report)
    if store.is_finished:
        return store
    if not store.labels.exists():
        _fill(store, store.config, load_federation(store.config))
    with companion(store), tracking(trackers, store.path, store.config) as pass_on:

        def emit(event: dict[str, Any]) -> None:
            report(event)
            pass_on(event)

        _federate(store, emit)
        summary = _evaluate(store, emit)
        audit = _audit(store, report)
        run_baselines(store, TRAINED)
    summary = complete(summary, results(store), audit, time.monotonic() - started)
    write_card(store.adapter, card_facts(store, summary))
    plot_run(store)
    write_json(store.path / "run.json", summary.model_dump(mode="json"))
    return store


def prepare(config: Config, out: Path, overwrite: bool, report: Progress) -> RunStore:
    """A run directory with the homes of all nodes, which `run` continues; arguments and errors as there."""
    check_new(config)
    if "private" in config.run.baselines:
        private_config(config)
    check_free(out, overwrite=overwrite)
    at("reading the records")
    federation = load_federation(config)
    names = [organisation.name for organisation in federation.organisations]
    settings = config.federation.model_copy(update={"nodes": len(names)})
    config = config.model_copy(update={"federation": settings})
    if unknown := sorted(set(config.adapter.ranks) - set(names)):
        raise ConfigError(f"adapter.ranks names {unknown[0]!r}; the organisations are {', '.join(names)}")
    at("loading the base")
    labels = _labels(federation, config)
    base = load_run_base(config, labels)
    _check_records(federation, base, config, labels)
    _note_untrained(federation, labels)
    for note in federation.notes.lines():
        report({"event": "note", "text": f"note: {note}"})
    _promise(config, base, report)
    agreed = config.base.model_copy(update={"sha256": base.sha256, "threads": _threads(config)})
    config = config.model_copy(update={"base": agreed})
    store = create_run(out, config, overwrite=overwrite)
    _fill(store, config, federation, base)
    return store


def _check_records(federation: Federation, base: Base, config: Config, labels: Sequence[str]) -> None:
    """Tokenise every record once: what a node would only find in round 1 is named here, by file and row."""
    at("checking the records")
    facts = (base.tokenizer, config.data, config.base.task)
    for records in (*(part.train for part in federation.organisations), federation.test):
        federation.notes.add(check_records(records, *facts, labels or None))
    for part in federation.organisations:
        if part.validation:  # whose labels nobody has agreed on, as nothing is trained on them
            federation.notes.add(check_records(part.validation, *facts, label_set(part.validation)))


def _note_untrained(federation: Federation, labels: Sequence[str]) -> None:
    """Note classes that the test has and no organisation: nobody learns them."""
    trained = {record.completion for part in federation.organisations for record in part.train}
    if missing := [label for label in labels if label not in trained]:
        federation.notes.files.append(f"{len(missing)} of {len(labels)} classes are in the test alone")


def _promise(config: Config, base: Base, report: Progress) -> None:
    """Say what the privacy plan promises; one whose noise swamps the run is refused before it starts."""
    attached = attach(base, config.adapter, config.run.seed)
    plan = RunPlan.from_config(config, attached.layout.size).checked()
    check_gradient(attached.model, base.tokenizer, config.base.model, base.task)
    if plan.signal is not None:
        figure = plan.signal.whole_run
        report({"event": "privacy", "noise_over_signal": figure, "text": f"privacy plan: {plan.claim}"})


def _threads(config: Config) -> int:
    """The thread count that results depend on: as configured, or what torch chose on this machine."""
    import torch

    return config.base.threads or torch.get_num_threads()


def _labels(federation: Federation, config: Config) -> list[str]:
    train = [record for organisation in federation.organisations for record in organisation.train]
    labels = classes([*train, *federation.test], config.base.task)
    if not labels and config.base.task == "sequence-classification":
        raise DataError("all records have one and the same label; a classifier needs two or more")
    return in_order_of_head(labels, config.base)


def _fill(store: RunStore, config: Config, federation: Federation, base: Base | None = None) -> None:
    """Write one home per organisation, the test records and, as the sign that all is there, the labels.

    The base is loaded for canaries that it writes, where it is not given.
    """
    labels, names = (
        _labels(federation, config),
        [organisation.name for organisation in federation.organisations],
    )
    roster = names if config.exchange.secure.enabled else ()
    writer: Base | None = None
    if config.audit.canaries and config.audit.canary_form == "written":
        detach()
        writer = base or load_run_base(config, labels)
    for index, organisation in enumerate(federation.organisations):
        home, facts = (
            store.path / "nodes" / organisation.name,
            Simulated(index < config.audit.nodes, labels, roster),
        )
        records = _with_canaries(organisation, config, home, labels, writer)
        create_home(home, organisation.name, records, config, facts)
    write_records(store.test, federation.test)
    write_json(store.labels, labels)


def _with_canaries(
    organisation: Organisation, config: Config, home: Path, labels: Sequence[str], writer: Base | None
) -> Sequence[Record]:
    """What a node trains on: its records, and the canaries that a coin chose."""
    if not config.audit.canaries:
        return organisation.train
    draw = (config.audit.canaries, config.run.seed, organisation.name)
    if writer is None:
        canaries = draw_canaries(*draw, organisation.train, bool(labels))
    else:
        canaries = write_canaries_with(writer, *draw, organisation.train, bool(labels))
    write_canaries(home, canaries)
    return planted(organisation.train, canaries)


def _federate(store: RunStore, report: Progress) -> None:
    """Run all rounds; judge the state that `federation.evaluate_every` names when the next round is done."""
    config = store.config

    reached = latest(store.path)
    at("round", 0 if reached is None else reached.round, config.federation.rounds)

    def watch(event: dict[str, Any]) -> None:
        report(event)
        if event["event"] == "round":
            _tell_training(store, report, event["round"])
            at("round", event["round"], config.federation.rounds)
        if event["event"] == "round" and _is_evaluated(store, config, before := event["round"] - 1):
            _, score = _score_state(store, load_checkpoint)
            _emit_evaluation(store, report, "federated", before, score)

    run_federation(store.path, store.homes, config.federation.backend, watch)


def _tell_training(store: RunStore, report: Progress, round: int) -> None:
    """The nodes' training losses of a round, from their own homes, which only a simulation can open.

    None where an update is to say nothing but itself: under DP, and in secure sums.
    """
    config = store.config
    if config.privacy.unit != "none" or config.exchange.secure.enabled:
        return
    notes = {home.name: _notes(home / "times.jsonl", round) for home in store.homes}
    losses = {name: note["loss"] for name, note in notes.items() if "loss" in note}
    if losses:
        mean = sum(losses.values()) / len(losses)
        event = {"event": "training", "round": round, "loss": mean, "nodes": losses}
        event["text"] = f"round {round}: training loss {mean:.4f}"
        store.append(event)
        report(event)


def _notes(path: Path, round: int) -> dict[str, Any]:
    """What a node noted of a round last; nothing where it was not in it."""
    lines = path.read_text().splitlines() if path.exists() else []
    return next((note for line in reversed(lines) if (note := json.loads(line))["round"] == round), {})


def _is_evaluated(store: RunStore, config: Config, round: int) -> bool:
    """Whether a round is to be evaluated and the newest checkpoint is still its own."""
    every = config.federation.evaluate_every
    if not every or round == 0 or round % every:
        return False
    checkpoint = latest(store.path)
    return checkpoint is not None and checkpoint.round == round


def _score_state(store: RunStore, load: Callable[[RunStore, Attached], State]) -> tuple[State, Evaluation]:
    held_out, config = HeldOut.of(store), store.config
    attached = attach(held_out.base, config.adapter, config.run.seed)
    state = load(store, attached)
    attached.begin(state)
    return state, held_out.score(attached)


def _emit_evaluation(store: RunStore, report: Progress, name: str, round: int, score: Evaluation) -> None:
    event = evaluation_event(name, round, score)
    store.append(event)
    report(event)


def _evaluate(store: RunStore, report: Progress) -> RunSummary:
    """Evaluate base and federated adapter on the global test, export the adapter, sum up what is known."""
    held_out, config = HeldOut.of(store), store.config
    attached = attach(held_out.base, config.adapter, config.run.seed)
    scores = {"base": held_out.score(attached)}
    final, scores["federated"] = _score_state(store, load_final)
    for name, score in scores.items():
        round = final_round(store) if name == "federated" else 0
        _emit_evaluation(store, report, name, round, score)
        write_predictions(store, name, score)
    factors = final if isinstance(final, FactorState) else None
    export(attached, store.adapter, factors, beside=store.base)
    return summarise(store, attached, scores)


def _audit(store: RunStore, report: Progress) -> AuditFacts | None:
    if not store.config.audit.enabled:
        return None
    audited = audit(store.path, progress=lambda line: report({"event": "audit", "text": line}))
    return AuditFacts(
        verdict=audited.verdict,
        verdicts=dict(Counter(finding.verdict for finding in audited.findings)),
        head=headline(audited.verdict, audited.risks),
        risks={risk.question: risk.label for risk in audited.risks},
    )
