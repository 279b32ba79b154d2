"""What an operator wants to know at a glance: coordinators, runs, privacy spent, what left last."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import typer

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
from fedpeft_clients.governance.policy_rules import Offer, agreed_base, run_epsilon
from fedpeft_clients.governance.proposals import Stored, offers
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
        "runs": [_run(stored) for stored in offers(organisation)],
        "lineages": _lineages(organisation),
        "sent": {"messages": len(entries), "bytes": sum(entry.get("bytes", 0) for entry in entries)},
        "outbox": entries[-LAST:],
    }


def describe_offers(organisation: Organisation) -> list[dict[str, Any]]:
    """Every offered run with its terms in plain words."""
    found: list[dict[str, Any]] = []
    for one in offers(organisation):
        facts = {key: getattr(one, key) for key in ("run", "coordinator", "answer", "rule", "sentence")}
        words = {"since": one.since, "hash": one.digest, "labels": _labels(one)}
        found.append({**facts, **words, "terms": _words(one, organisation)})
    return found


def show(facts: dict[str, Any]) -> None:
    """Print it for people."""
    typer.echo(f"node {facts['name']} in {facts['home']}")
    for one in facts["coordinators"]:
        life = "running" if one["running"] else "not running"
        last = f"; last said {_ago(one['time'])} ago: {one['state']}" if one["state"] else ""
        typer.echo(
            f"coordinator {one['federation']} at {one['address']} ({one['fingerprint']}): {life}{last}"
        )
    runs = ((one["run"][:12], one["answer"], one["rule"] or "-", one["round"]) for one in facts["runs"])
    table("runs", ("run", "answer", "rule", "last round"), runs)
    sums = (
        (
            one["lineage"],
            shown(one["epsilon"], ".4g", "unknown"),
            one["budget"] or "no limit",
            one["unit"],
        )
        for one in facts["lineages"]
    )
    table("privacy", ("data set", "epsilon", "of", "per"), sums)
    sent = facts["sent"]
    table(f"what left last, of {sent['messages']} messages", COLUMNS, map(row, facts["outbox"]))


def _coordinator(grant: Grant) -> dict[str, Any]:
    said = read_json(grant.service, {})
    facts = {"federation": grant.federation, "address": grant.address, "fingerprint": grant.fingerprint}
    return {**facts, "running": running(grant), "state": said.get("state"), "time": said.get("time")}


def _run(stored: Stored) -> dict[str, Any]:
    rounds = held_rounds(stored.folder / "state")
    return {
        "run": stored.run,
        "coordinator": stored.coordinator,
        "answer": stored.answer,
        "rule": stored.rule,
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
    found = totals_of(load_chain(organisation.ledger), None, budget)
    names = ("lineage", "epsilon", "budget", "unit", "trust", "delta")
    return [{name: one[name] for name in names} for one in found]


def _words(stored: Stored, organisation: Organisation) -> list[str]:
    """The terms of a run for an operator; what the coordinator wrote cannot move the cursor."""
    try:
        terms = _terms(Offer(stored.config, organisation.name, stored.coordinator))
        return [printable(line) for line in [*terms, _classes(_labels(stored)), f"hash: {stored.digest}"]]
    except FedPeftError as error:
        return [f"its terms cannot be shown: {error}"]


def _labels(stored: Stored) -> list[str]:
    """Of the task, as the coordinator lists them."""
    try:
        return list(RunProposal.decode(bytes.fromhex(stored.terms)).labels)
    except FedPeftError:
        return []


def _classes(labels: list[str]) -> str:
    """All labels, or the first of very many; a record with another label counts as nothing."""
    digest = hashlib.sha256(json.dumps(labels, ensure_ascii=False).encode()).hexdigest()
    more = f" and {len(labels) - SHOWN} more (--json shows all)" if len(labels) > SHOWN else ""
    listed = ", ".join(map(repr, labels[:SHOWN])) + more
    return f"labels: {len(labels)}, SHA-256 {digest}: {listed}" if labels else "labels: none"


def _terms(offer: Offer) -> list[str]:
    config = offer.config
    federation, adapter, up = config.federation, config.adapter, config.exchange.up
    base = agreed_base(config) or "not named by hash"
    mode = f", {adapter.aggregation}" if adapter.key != adapter.method else ""
    sums = ", summed securely: the coordinator sees the sum alone" if config.exchange.secure.enabled else ""
    return [
        f"name: {config.run.name}",
        f"model: {config.base.model} ({base}), quantisation {config.base.quantisation}",
        f"adapter: {adapter.method}{mode}, rank {offer.rank}",
        f"training: {federation.rounds} rounds of {federation.local_steps} steps with "
        f"{federation.batch_size} records, learning rate {federation.lr:g}",
        _records(offer),
        f"others: {federation.nodes} nodes; quorum {offer.quorum}",
        f"what leaves: each round one update, {up.codec}, {offer.density:.0%} of its values{sums}",
        *_sums(offer),
        _privacy(offer),
        f"machine: {config.base.threads or 'any number of'} threads, {config.run.tokens_at_once} tokens "
        f"at once, engine {config.run.engine}, {federation.deadline:g} s a round",
    ]


def _records(offer: Offer) -> str:
    data, privacy = offer.config.data, offer.config.privacy
    form = (
        "chats in the template of the base, which its hash covers" if data.messages else repr(data.template)
    )
    seed = (
        "; batches and noise follow from run.seed, which others know"
        if privacy.randomness == "seeded"
        else ""
    )
    return f"records: {form}, at most {data.max_length} tokens{seed}"


def _sums(offer: Offer) -> list[str]:
    if not offer.config.exchange.secure.enabled:
        return []
    cohort, run = Cohort.of(offer.config), offer.run.hex()[:12]
    return [f"sums: {cohort.words}; compare and pin their keys: fedpeft node roster show {run}"]


def _privacy(offer: Offer) -> str:
    privacy = offer.config.privacy
    if privacy.unit == "none":
        return "privacy: none is promised; the update may tell of single records"
    reached = run_epsilon(offer.config)
    return (
        f"privacy: epsilon {shown(written(reached), '.4g')} at delta {privacy.delta:g} per {privacy.unit} "
        "over the whole run, which is the most that leaves; rounds that a crash cuts off are charged beside "
        f"it; noise by trust {privacy.trust}, clip {privacy.clip:g}{_adjacency(offer)}"
    )


def _adjacency(offer: Offer) -> str:
    """What else holds of noise that the nodes add together."""
    if offer.config.privacy.trust != "distributed":
        return ""
    return ", against one node's update being replaced by zero"


def _ago(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
