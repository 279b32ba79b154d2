"""Overview for an operator: coordinators, runs, privacy spent, what left last."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import typer

from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.cli.output import table
from fedpeft.cohort import Cohort
from fedpeft.epsilons import shown, written
from fedpeft.errors import FedPeftError
from fedpeft.protocol.messages import RunProposal
from fedpeft.runstore import read_json
from fedpeft.terminal import printable
from fedpeft.trust.signed_log import entries_of
from fedpeft_clients.cli.outbox import COLUMNS, row
from fedpeft_clients.governance.organisation import Grant, Organisation
from fedpeft_clients.governance.policy_rules import ProposedRun, agreed_base, run_epsilon
from fedpeft_clients.governance.proposals import SavedProposal, offers
from fedpeft_clients.rounds.node_state import held_rounds
from fedpeft_clients.service.service import running

LAST = 5
SHOWN = 100
"""Labels of a task on the screen."""


def examine(organisation: Organisation) -> dict[str, Any]:
    """Everything that ``status`` shows."""
    entries = entries_of(organisation.outbox.read())
    return {
        "name": organisation.name,
        "home": str(organisation.path),
        "coordinators": [_coordinator(grant) for grant in organisation.grants()],
        "runs": [_run(saved) for saved in offers(organisation)],
        "lineages": _lineages(organisation),
        "sent": {"messages": len(entries), "bytes": sum(entry.get("bytes", 0) for entry in entries)},
        "outbox": entries[-LAST:],
    }


def describe_offers(organisation: Organisation) -> list[dict[str, Any]]:
    """Every offered run with its terms in plain words."""
    descriptions: list[dict[str, Any]] = []
    for saved in offers(organisation):
        facts = {key: getattr(saved, key) for key in ("run", "coordinator", "answer", "rule", "sentence")}
        words = {"since": saved.since, "hash": saved.digest, "labels": _labels(saved)}
        descriptions.append({**facts, **words, "terms": _words(saved, organisation)})
    return descriptions


def show(facts: dict[str, Any]) -> None:
    """Print it for people."""
    typer.echo(f"node {facts['name']} in {facts['home']}")
    for coordinator in facts["coordinators"]:
        life = "running" if coordinator["running"] else "not running"
        state = coordinator["state"]
        last = f"; {_ago(coordinator['time'])} ago: {state}" if state else ""
        where = f"{coordinator['federation']} at {coordinator['address']} ({coordinator['fingerprint']})"
        typer.echo(f"coordinator {where}: {life}{last}")
    runs = ((run["run"][:12], run["answer"], run["rule"] or "-", run["round"]) for run in facts["runs"])
    table("runs", ("run", "answer", "rule", "last round"), runs)
    sums = (
        (
            total["lineage"],
            shown(total["epsilon"], ".4g", "unknown"),
            total["budget"] or "no limit",
            total["unit"],
        )
        for total in facts["lineages"]
    )
    table("privacy", ("data set", "epsilon", "of", "per"), sums)
    sent = facts["sent"]
    table(f"what left last, of {sent['messages']} messages", COLUMNS, map(row, facts["outbox"]))


def _coordinator(grant: Grant) -> dict[str, Any]:
    state = read_json(grant.service, {})
    facts = {"federation": grant.federation, "address": grant.address, "fingerprint": grant.fingerprint}
    return {**facts, "running": running(grant), "state": state.get("state"), "time": state.get("time")}


def _run(saved: SavedProposal) -> dict[str, Any]:
    rounds = held_rounds(saved.folder / "state")
    return {
        "run": saved.run,
        "coordinator": saved.coordinator,
        "answer": saved.answer,
        "rule": saved.rule,
        "round": rounds[-1] if rounds else 0,
    }


def _lineages(organisation: Organisation) -> list[dict[str, Any]]:
    """Joint epsilon of each promise of each data set that was ever trained on; None is unknown."""
    from fedpeft.privacy.ledger import Budget
    from fedpeft.privacy.ledger.exports import load_chain
    from fedpeft_clients.cli.ledger import totals_of
    from fedpeft_clients.governance.policy import parse_policy

    if not organisation.ledger.exists():
        return []
    try:
        budget = parse_policy(organisation.policy.read_text(encoding="utf-8")).privacy.budget()
    except (OSError, FedPeftError):
        budget = Budget()
    totals = totals_of(load_chain(organisation.ledger), None, budget)
    names = ("lineage", "epsilon", "budget", "unit", "trust", "delta")
    return [{name: total[name] for name in names} for total in totals]


def _words(saved: SavedProposal, organisation: Organisation) -> list[str]:
    """The terms of a run for an operator; what the coordinator wrote cannot move the cursor."""
    try:
        terms = _terms(ProposedRun(saved.config, organisation.name, saved.coordinator))
        return [printable(line) for line in [*terms, _classes(_labels(saved)), f"hash: {saved.digest}"]]
    except FedPeftError as error:
        return [f"its terms cannot be shown: {error}"]


def _labels(saved: SavedProposal) -> list[str]:
    """Of the task, as the coordinator lists them."""
    try:
        return list(RunProposal.decode(bytes.fromhex(saved.terms)).labels)
    except FedPeftError:
        return []


def _classes(labels: list[str]) -> str:
    """All labels, or the first of very many; a record with another label counts as nothing."""
    digest = hashlib.sha256(json.dumps(labels, ensure_ascii=False).encode()).hexdigest()
    more = f" and {len(labels) - SHOWN} more (--json shows all)" if len(labels) > SHOWN else ""
    listed = ", ".join(map(repr, labels[:SHOWN])) + more
    return f"labels: {len(labels)}, SHA-256 {digest}: {listed}" if labels else "labels: none"


def _terms(proposal: ProposedRun) -> list[str]:
    config = proposal.config
    federation, adapter, up = config.federation, config.adapter, config.exchange.up
    base = agreed_base(config) or "not named by hash"
    mode = f", {adapter.aggregation}" if adapter.key != adapter.method else ""
    parts = "".join(
        f"; {setting}: {sentence}" for setting, sentence in REVEALED.items() if getattr(adapter, setting)
    )
    sums = ", summed securely: the coordinator sees the sum alone" if config.exchange.secure.enabled else ""
    return [
        f"name: {config.run.name}",
        f"model: {config.base.model} ({base}), quantisation {config.base.quantisation}",
        f"adapter: {adapter.method}{mode}, rank {proposal.rank}{parts}",
        f"training: {federation.rounds} rounds of {federation.local_steps} steps with "
        f"{federation.batch_size} records, learning rate {federation.lr:g}",
        _records(proposal),
        f"others: {federation.nodes} nodes; quorum {proposal.quorum}",
        f"what leaves: each round one update, {up.codec}, {proposal.density:.0%} of its values{sums}",
        *_sums(proposal),
        _privacy(proposal),
        f"machine: {config.base.threads or 'any number of'} threads, {config.run.tokens_at_once} tokens "
        f"at once, engine {config.run.engine}, {federation.deadline:g} s a round",
    ]


def _records(proposal: ProposedRun) -> str:
    data, privacy = proposal.config.data, proposal.config.privacy
    form = (
        "chats in the template of the base, which its hash covers" if data.messages else repr(data.template)
    )
    seed = (
        "; batches and noise follow from run.seed, which others know"
        if privacy.randomness == "seeded"
        else ""
    )
    return f"records: {form}, at most {data.max_length} tokens{seed}"


def _sums(proposal: ProposedRun) -> list[str]:
    if not proposal.config.exchange.secure.enabled:
        return []
    cohort, run = Cohort.of(proposal.config), proposal.run.hex()[:12]
    return [f"sums: {cohort.words}; compare and pin their keys: fedpeft node roster show {run}"]


def _privacy(proposal: ProposedRun) -> str:
    privacy = proposal.config.privacy
    if privacy.unit == "none":
        return "privacy: none is promised; the update may reveal single records"
    reached = run_epsilon(proposal.config)
    return (
        f"privacy: epsilon {shown(written(reached), '.4g')} at delta {privacy.delta:g} per {privacy.unit} "
        "over the whole run, which is the most that leaves; rounds that a crash cuts off are charged "
        f"besides; noise by trust {privacy.trust}, clip {privacy.clip:g}{_adjacency(proposal)}"
    )


def _adjacency(proposal: ProposedRun) -> str:
    """Of what, and between which neighbours, noise that the nodes add together holds."""
    privacy = proposal.config.privacy
    if privacy.trust != "distributed":
        return ""
    pinned = ", of the sum of all nodes, while their keys are pinned"
    return f"{pinned}, against one node's update being replaced by zero" if privacy.unit == "node" else pinned


def _ago(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
