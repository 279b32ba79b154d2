"""A page for a DPIA (GDPR article 35) and one for NIST SP 800-226, filled in from what the run knows.

Nothing is invented: purposes, people, legal grounds, ratings and signatures stay empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft import __version__
from fedpeft.config import Config
from fedpeft.privacy.plan import AGAINST
from fedpeft.runstore import RunStore
from fedpeft_attacks.report.summaries import closeness, epsilon_words
from fedpeft_attacks.report.wording import HARMS, role_in_words
from fedpeft_attacks.results.assessments import AssessedRisk, Assessment, Chapter, Entry
from fedpeft_attacks.results.findings import (
    Change,
    Claim,
    EpsilonCheck,
    Exchange,
    Finding,
    Kind,
    Risk,
    Threat,
)
from fedpeft_attacks.results.measures import written

_KINDS: Mapping[str, Kind] = {
    "membership": "membership",
    "text": "inversion",
    "labels": "property",
    "memory": "memorisation",
}


@dataclass(frozen=True)
class Run:
    """What is known of a run beside what its attacks found.

    Attributes:
        config: of the run.
        base: name of the base.
        records: number of records by organisation; empty: not known.
        scores: ``loss`` and ``accuracy`` of ``base`` and ``federated`` on held-out records; empty: not known.
        claim: the privacy that is claimed.
        exchange: what was sent.
        stands: what the figures are of.
    """

    config: Config
    base: str
    records: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Any]]
    claim: Claim
    exchange: Exchange
    stands: str


_SIMULATED = (
    "The figures are of a simulated run: all organisations' records lay on one machine. They stand for a "
    "deployment with the same config, and not for its machines and people."
)


def run_facts(store: RunStore, base: str, claim: Claim, exchange: Exchange) -> Run:
    """What a simulated run knows of its data and its use."""
    files = {home.name: home / "train.jsonl" for home in store.homes}
    records = {name: _lines(file.read_bytes()) for name, file in files.items() if file.is_file()}
    scores = {event["arm"]: event for event in store.events("evaluation")}
    return Run(store.config, base, records, scores, claim, exchange, _SIMULATED)


def dpia(
    run: Run, findings: Sequence[Finding], risks: Sequence[Risk], changes: Sequence[Change]
) -> Assessment:
    """The page of article 35(7), with an empty field for all that only the controller knows."""
    chapters = (
        Chapter(title="Nature of the processing", entries=_nature(run)),
        Chapter(title="Scope: data, volumes, people", entries=_scope(run)),
        Chapter(title="Context and purposes", entries=_purposes(run)),
        Chapter(title="Necessity and proportionality", entries=_necessity(run)),
        Chapter(title="Measures", entries=_measures(run, changes)),
        Chapter(title="Consultation and sign-off", entries=_empty(_SIGNED)),
    )
    assessed = tuple(_assessed(risk, findings) for risk in risks if risk.name in _KINDS)
    return Assessment(
        name="dpia", title="Data protection impact assessment", chapters=chapters, risks=assessed
    )


def sp_800_226(run: Run, threats: Sequence[Threat], checks: Sequence[EpsilonCheck]) -> Assessment:
    """What NIST SP 800-226 asks of a claim of differential privacy."""
    chapters = (
        Chapter(title="The guarantee", entries=_guarantee(run, checks)),
        Chapter(title="Adversary and trust", entries=_trust(run, threats)),
        Chapter(title="Composition and what is not charged", entries=_composition(run)),
        Chapter(title="Utility and bias", entries=_utility(run)),
        Chapter(title="Data and access", entries=_empty(_ACCESS)),
    )
    return Assessment(name="sp-800-226", title="NIST SP 800-226: the privacy claim", chapters=chapters)


_SIGNED = (
    "Advice of the data protection officer",
    "Views of the people concerned, or why they were not asked",
    "Residual risk, and who accepts it",
    "Prior consultation of the authority (article 36)",
    "Author",
    "Date",
    "Signature of the controller",
    "Date of the next review",
)
_ACCESS = (
    "How the records were collected, and who could reach them before training",
    "Who may read node homes, ledgers and updates",
    "Side channels (times, sizes, memory) that were examined",
)


def _empty(questions: Sequence[str]) -> tuple[Entry, ...]:
    return tuple(Entry(asked=question) for question in questions)


def _nature(run: Run) -> tuple[Entry, ...]:
    federation, secure = run.config.federation, run.config.exchange.secure.enabled
    done = (
        f"{federation.nodes} organisations train an adapter of the language model {run.base} together. Each "
        f"trains on its own records, which stay with it. In each of {federation.rounds} rounds it sends one "
        "compressed, signed change of the adapter and gets the combined change back."
    )
    coordinator = "the sum of all envelopes" if secure else "each organisation's envelope"
    recipients = (
        f"The coordinator: {coordinator}. Every organisation: the mean of all. Whoever is given it: the "
        "finished adapter."
    )
    return (
        Entry(asked="What is done with the data", answer=done, see="exchange"),
        Entry(asked="Who receives what", answer=recipients, see="threats"),
        Entry(asked="What this audit looked at", answer=run.stands, see="limits"),
        *_empty(
            ("Controller, joint controllers, processors", "How long records, updates and adapter are kept")
        ),
    )


def _scope(run: Run) -> tuple[Entry, ...]:
    data, federation = run.config.data, run.config.federation
    counts = ", ".join(f"{name} {count}" for name, count in run.records.items())
    volumes = (
        f"Records: {counts} ({sum(run.records.values())} together), up to {data.max_length} tokens of each. "
        f"A round draws {federation.local_steps} times {federation.batch_size} of them in each organisation."
    )
    up = next(way for way in run.exchange.directions if way.direction == "up")
    sent = f"{up.bytes:,} bytes in all envelopes; no record is sent." if up.bytes else None
    return (
        *_empty(("Categories of personal data", "Special categories (articles 9 and 10)")),
        Entry(asked="Volumes", answer=volumes if run.records else None),
        Entry(asked="What leaves the organisations", answer=sent, see="exchange"),
        *_empty(("Number and groups of people concerned", "Area and duration")),
    )


def _purposes(run: Run) -> tuple[Entry, ...]:
    return (
        *_empty(
            (
                "Purposes of the processing",
                "Relation to the people concerned; children or others who need protection",
                "What people expect, and what they can decide",
            )
        ),
        Entry(asked="Benefit that was measured", answer=_gain(run)),
        Entry(asked="State of the technology", answer=f"fedpeft {__version__}", see="checking"),
    )


def _necessity(run: Run) -> tuple[Entry, ...]:
    density, left_out = run.config.exchange.up.density, run.config.adapter.skip_layers
    layers = f" Layers without adapter: {', '.join(map(str, left_out))}." if left_out else ""
    minimal = f"Records are not sent. {density:.0%} of the values of an update are sent, rounded.{layers}"
    erasure = "A record cannot be taken out of a finished adapter: train again without it."
    return (
        *_empty(
            ("Legal ground", "Why the purpose needs this processing, and which milder means were weighed")
        ),
        Entry(asked="Data minimisation", answer=minimal, see="exchange"),
        Entry(asked="Erasure, after training", answer=erasure),
        *_empty(("Information, access, objection", "Transfers to third countries")),
    )


def _measures(run: Run, changes: Sequence[Change]) -> tuple[Entry, ...]:
    sums = "on: the coordinator sees sums alone" if run.config.exchange.secure.enabled else "off"
    proposed = "; ".join(change.setting for change in changes) or None
    return (
        Entry(asked="Differential privacy", answer=run.claim.text, see="epsilon"),
        Entry(asked="Secure aggregation", answer=sums, see="exchange"),
        Entry(asked="Measures that this audit proposes", answer=proposed, see="summary"),
        *_empty(
            ("Measures that were decided, by whom, by when", "Organisational measures, contracts, training")
        ),
    )


def _assessed(risk: Risk, findings: Sequence[Finding]) -> AssessedRisk:
    kind = _KINDS[risk.name]
    tried = [finding for finding in findings if finding.kind == kind and finding.power is not None]
    powers = dict.fromkeys(_power(finding) for finding in sorted(tried, key=closeness, reverse=True))
    return AssessedRisk(
        name=risk.name,
        risk=risk.question,
        harm=HARMS[kind],
        before="with all protections off, " + "; ".join(powers) if powers else _UNKNOWN,
        after=risk.label,
        verdict=risk.verdict,
    )


_UNKNOWN = "not known: no attack was tried with all protections off"


def _power(finding: Finding) -> str:
    power = finding.power
    shares = {} if power is None else power.shares
    return f"{finding.attack}: " + ", ".join(f"{written(value)} of {name}" for name, value in shares.items())


def _guarantee(run: Run, checks: Sequence[EpsilonCheck]) -> tuple[Entry, ...]:
    claim, plan = run.claim, run.claim.plan or {}
    grid = plan.get("grid") or {}
    facts = {**plan, **{name: grid[name] for name in _SHARED if name in grid}}
    mechanism = ", ".join(
        f"{_SHARED.get(name, name.replace('_', ' '))} {facts[name]}" for name in _MECHANISM if name in facts
    )
    return (
        Entry(asked="Unit of privacy", answer=claim.unit, see="epsilon"),
        Entry(asked="Epsilon and delta", answer=claim.text, see="epsilon"),
        Entry(asked="Mechanism", answer=mechanism or "none: no noise is added", see="epsilon"),
        Entry(asked="Measured lower bound", answer=epsilon_words(checks), see="epsilon"),
        Entry(asked="Why this unit and this epsilon protect the people concerned"),
    )


_SHARED = {"least_nodes": "noise of at least so many nodes", "colluders": "colluding nodes at most"}
_MECHANISM = (
    *(
        "trust",
        "noise_multiplier",
        "clip",
        "sampling_probability",
        "bands",
        "steps",
        "adjacency",
        "accountant",
    ),
    *_SHARED,
)


def _trust(run: Run, threats: Sequence[Threat]) -> tuple[Entry, ...]:
    noise = AGAINST[run.claim.plan["trust"]] if run.claim.plan else "nobody: no claim is made"
    played = [role_in_words(threat.role) for threat in threats if threat.attacks]
    others = [role_in_words(threat.role) for threat in threats if not threat.attacks]
    roles = f"{', '.join(played) or 'nobody'}; not: {', '.join(others) or 'nobody'}"
    return (
        Entry(asked="Against whom the claim holds", answer=noise, see="threats"),
        Entry(asked="Adversaries that were simulated", answer=roles, see="threats"),
        Entry(asked="Who runs coordinator and organisations, and why they are trusted so far"),
    )


def _composition(run: Run) -> tuple[Entry, ...]:
    federation, privacy = run.config.federation, run.config.privacy
    horizon = (
        f"This run: {federation.rounds} rounds of {federation.local_steps} steps. Other runs on the same "
        "records are in each organisation's ledger and not in this report."
    )
    limits = (
        f"budget over all runs {privacy.budget or 'none'}, within 365 days {privacy.yearly_budget or 'none'}"
    )
    uncharged = (
        "Beside an envelope: round, number of steps, seconds of training (0 under differential "
        "privacy and in secure sums), epsilon spent, place and hash in the ledger. Settings that were chosen "
        "by looking at the records, and scores on held-out records, are not charged either."
    )
    return (
        Entry(asked="Horizon of composition", answer=horizon),
        Entry(asked="Limits", answer=limits),
        Entry(asked="Outputs that are not charged", answer=uncharged, see="exchange"),
        Entry(asked="Other releases from the same records"),
    )


def _utility(run: Run) -> tuple[Entry, ...]:
    return (
        Entry(asked="Utility", answer=_gain(run)),
        Entry(asked="Utility that the purpose needs"),
        Entry(asked="Bias: quality for small groups, before and after noise"),
    )


def _gain(run: Run) -> str | None:
    """Held-out loss and accuracy before and after, where the run measured them."""
    if not {"base", "federated"} <= run.scores.keys():
        return None
    before, after = run.scores["base"], run.scores["federated"]
    words = [
        f"{name} {before[name]:.3g} before, {after[name]:.3g} after"
        for name in ("loss", "accuracy")
        if before.get(name) is not None and after.get(name) is not None
    ]
    return f"On held-out records: {'; '.join(words)}." if words else None


def _lines(data: bytes) -> int:
    return sum(1 for line in data.splitlines() if line.strip())
