"""The report of a deployed run, from what one organisation holds: its own audits of its own envelopes.

A node whose ``audit.outbox`` is ``report`` or ``refuse`` attacks each envelope before it leaves and writes
``outbox/rNN.audit.json`` into the home of the run. Nothing else of a deployment is written down for an
audit: the mean, the finished adapter and the records behind updates stay untested here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.config import Config, build_config
from fedpeft.errors import AuditError
from fedpeft.run_plan import RunPlan
from fedpeft_attacks.report.assemble import (
    Audited,
    Delivery,
    Results,
    claim_of,
    report_of,
    short_name,
    write_report,
)
from fedpeft_attacks.report.assessment import Run
from fedpeft_attacks.report.exchange_facts import direction_of
from fedpeft_attacks.report.limits import not_tested
from fedpeft_attacks.results.findings import AuditedEnvelope, Exchange, Finding, Report
from fedpeft_attacks.results.measures import RARE, TOKENS, Measure
from fedpeft_attacks.results.token_scores import Counts, measure
from fedpeft_attacks.results.verdicts import Subject, finding_of
from fedpeft_attacks.results.words import worst

HOME = "node.json"
ENVELOPE = "envelope"
Rows = Sequence[tuple[int, Mapping[str, Any]]]
"""Rounds, each with what one attack found of its envelope."""

_STANDS = (
    "One organisation's part of a deployed run: its own audit of its own envelopes, made before they left. "
    "Nothing is known here of the other organisations."
)
_LEFT_OUT = (
    "What this organisation's audit found is left out of this copy: under differential privacy and in secure "
    "sums nothing that others get may depend on a record, and a finding does. The organisation's own copy "
    "has it."
)


def audit_home(home: Path, out: Path | None = None, delivery: Delivery | None = None) -> Report:
    """Write the report of one run from an organisation's home of it; nothing is attacked anew.

    The copy for others, which a coordinator may get, holds no number of records, and no finding where the
    run is under differential privacy or sums securely.

    Args:
        home: the folder of a run in a node's home, which holds ``node.json``.
        out: folder of the report; default: ``audit`` in the home.
        delivery: whether it is the organisation's own copy, and who signs; default: for others, not signed.

    Raises:
        AuditError: no round has an audit that this version can read, or there is no key to sign with.
    """
    delivery = delivery or Delivery()
    facts = json.loads((home / HOME).read_text(encoding="utf-8"))
    config, name = build_config(facts["config"]), str(facts["name"])
    rounds = _audits(home / "outbox")
    discreet = config.privacy.unit != "none" or config.exchange.secure.enabled
    shown = delivery.own_copy or not discreet
    findings = _findings(rounds, config) if shown else []
    plan = RunPlan.from_config(config, _size(home))
    envelopes = _envelopes(home)
    length = sum(envelope.bytes for envelope in envelopes)
    ways = (direction_of("up", plan.up, 0, length), direction_of("down", plan.down, 0, 0))
    records = {name: _records(home / facts["train"])} if delivery.own_copy else {}
    places = (name,), tuple(rounds)
    exchange = Exchange(stages=(ENVELOPE,), directions=ways)
    base = short_name(config.base.model)
    audited = Audited(
        run=Run(config, base, records, {}, claim_of(plan.privacy), exchange, _STANDS),
        base_sha256=config.base.sha256 or "not agreed by hash",
        nodes=places[0],
        rounds=places[1],
        threshold=_threshold(facts, config),
        envelopes=envelopes,
        not_tested=(*(() if shown else (_LEFT_OUT,)), *not_tested(config, places, findings, ())),
        command="fedpeft audit HOME" + (" --own-copy" if delivery.own_copy else ""),
    )
    report = report_of(audited, Results(findings), delivery)
    write_report(report, out or home / "audit", delivery.sign_with)
    return report


def _threshold(facts: Mapping[str, Any], config: Config) -> float:
    """Of the node's audit: its own, or that of the run."""
    threshold = (facts.get("settings") or {}).get("threshold")
    return config.audit.threshold if threshold is None else float(threshold)


def _audits(outbox: Path) -> dict[int, list[dict[str, Any]]]:
    """Findings by round, of rounds whose file has the baselines that a verdict stands beside."""
    rounds = dict[int, list[dict[str, Any]]]()
    for file in sorted(outbox.glob("r*.audit.json")):
        if re.fullmatch(r"r\d+\.audit\.json", file.name):
            facts = json.loads(file.read_text(encoding="utf-8"))
            if all("chance" in finding for finding in facts["findings"]):
                rounds[int(facts["round"])] = facts["findings"]
    if not rounds:
        raise AuditError(
            f"{str(outbox)!r} holds no audit of an envelope that this version can read; set [audit] mode in "
            "the policy (audit.outbox in a simulation), and the node audits the envelopes of its next run"
        )
    return rounds


def _findings(rounds: Mapping[int, Sequence[Mapping[str, Any]]], config: Config) -> list[Finding]:
    names = dict.fromkeys(str(finding["attack"]) for findings in rounds.values() for finding in findings)
    every = [(number, finding) for number, findings in rounds.items() for finding in findings]
    return [_finding(name, [row for row in every if row[1]["attack"] == name], config) for name in names]


def _finding(name: str, rows: Rows, config: Config) -> Finding:
    """One attack over all rounds: the worst verdict with its round, and figures of all rounds together."""
    verdict = worst(str(facts["verdict"]) for _, facts in rows)
    applies = [row for row in rows if row[1]["verdict"] != "not applicable"]
    verdict = verdict if applies else "not applicable"
    number, first = next(row for row in rows if row[1]["verdict"] == verdict)
    read = [facts for _, facts in rows if facts["recall"] is not None]
    figures = (_measure(read, TOKENS), _measure([row for row in read if row["rare_tokens"]], RARE))
    measures = [figure for figure in figures if figure is not None]
    subject = Subject(name, "inversion", ENVELOPE, "coordinator", config.adapter.key)
    finding = finding_of(subject, measures, config.audit.threshold, reason=str(first["reason"]))
    return finding.model_copy(update={"verdict": verdict, "reason": f"round {number}: {first['reason']}"})


def _measure(read: Sequence[Mapping[str, Any]], name: str) -> Measure | None:
    """Recall of all rounds together, with interval and baselines; None where nothing was read."""
    prefix, control = ("", "control") if name == TOKENS else ("rare_", "rare_control")
    parts = list[Counts]()
    for facts in read:
        count = int(facts[f"{prefix}tokens"])
        hits, other = round(facts[f"{prefix}recall"] * count), facts[control] * count
        prior = round(facts["prior"] * count) if name == TOKENS else 0  # the base seldom writes rare ones
        parts.append(Counts(count, hits, facts["chance"] * count, prior, other))
    return measure(parts, name) if parts else None


def _size(home: Path) -> int:
    """Values that the node exchanges, from what it holds after its newest round; 0 before the first."""
    states = sorted((home / "state").glob("*.npz"))
    if not states:
        return 0
    with np.load(states[-1], allow_pickle=False) as state:
        return int(state["values"].size)


def _envelopes(home: Path) -> list[AuditedEnvelope]:
    """The envelopes in the outbox."""
    envelopes = list[AuditedEnvelope]()
    for path in sorted((home / "outbox").glob("r*.fpd")):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        envelopes.append(AuditedEnvelope(file=f"outbox/{path.name}", sha256=digest, bytes=len(data)))
    return envelopes


def _records(file: Path) -> int:
    """Lines of a data file; 0 where it lies elsewhere."""
    return sum(1 for line in file.read_bytes().splitlines() if line.strip()) if file.is_file() else 0
