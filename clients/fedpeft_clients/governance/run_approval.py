"""Terms of a run: read, judged and remembered, and the home that a run gets once it is agreed on."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fedpeft.config import Config, build_config
from fedpeft.errors import ConfigError, DataError, FederationError, PrivacyError
from fedpeft.privacy import Ledger, plan_from_config
from fedpeft.protocol.messages import OLDEST, PROTOCOL, RunProposal, Terms, TermsReply, spoken
from fedpeft.runstore import read_json, write_json
from fedpeft.runstore.files import sync_folder
from fedpeft.trust import Verifier
from fedpeft_clients.governance.organisation import DataSet, Grant, Organisation, open_organisation
from fedpeft_clients.governance.policy import Policy, PolicyError, parse_policy, within_hours
from fedpeft_clients.governance.policy_rules import Offer, judge, own_base
from fedpeft_clients.governance.proposals import FILE, OFFER, Stored, offered, offers, read_before
from fedpeft_clients.governance.record_overlap import admit, changed
from fedpeft_clients.governance.rosters import check_roster, unpinned
from fedpeft_clients.outbox import ledger_witness
from fedpeft_clients.rounds.run_home import HOME, Home, Own, open_home

MOST_OFFERS = 64
"""Runs of one coordinator that may lie here without having been agreed on; more are refused unread."""
MOST_FLOWER_RUNS = 256
LOG = logging.getLogger("fedpeft.node")
_AUDIT: dict[str, Literal["off", "report", "refuse"]] = {"off": "off", "warn": "report", "block": "refuse"}


@dataclass(frozen=True)
class Post:
    """One organisation as one coordinator speaks to it."""

    organisation: Organisation
    grant: Grant

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Post:
        """What a node's own configuration names.

        Raises:
            ConfigError: it names no organisation, or a coordinator that was not joined.
        """
        organisation = open_organisation(Path(str(node_config["organisation"])))
        return cls(organisation, organisation.grant(str(node_config["coordinator"])))

    def policy(self) -> Policy:
        """The organisation's limits as they stand now.

        Raises:
            PolicyError: rule ``policy``: the file is missing or does not hold; nothing is allowed then.
        """
        try:
            return parse_policy(self.organisation.policy.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise PolicyError("policy", f"{self.organisation.policy} cannot be used: {error}") from None

    def folder(self, run: bytes) -> Path:
        """Home of a run."""
        return self.organisation.runs / run.hex()

    def home(self, flower_run: int) -> Home:
        """The home of the run that a Flower run is, held against today's policy.

        Raises:
            PolicyError: its terms were not agreed on, or the policy or the operator now says no.
        """
        name = read_json(self.grant.flower, {}).get(str(flower_run))
        if name is None:
            raise PolicyError("terms", f"Flower run {flower_run} speaks before its terms were agreed on")
        home = open_home(self.organisation.runs / name)
        policy, offer = self.policy(), Offer(home.config, home.name, self.grant.fingerprint)
        if home.coordinator != self.grant.coordinator:
            raise PolicyError("coordinator", f"run {name[:12]} belongs to another coordinator")
        judge(policy, offer)
        if _word(self, offer.run).get("answer") == "refused":
            raise PolicyError("approval", f"run {name[:12]} was refused by the operator")
        _, dataset = _dataset(self, policy, offer, home.own.data)
        if changed(self.organisation, dataset):
            _compare(self.organisation, policy, dataset)
        roster = {one: bytes.fromhex(key) for one, key in home.roster.items()}
        check_roster(self.organisation, home.config, roster)
        if sentence := unpinned(self.organisation, policy, home.config, roster):
            raise PolicyError("roster", sentence)
        return _settled(self, policy, offer, (home.labels, home.roster), home.own.data)


def answer(post: Post, flower_run: int, asked: Terms, blob: bytes) -> TermsReply:
    """Judge the terms of a run and say what comes of it; only names of rules are told.

    Once this says ``agreed``, the run's home and the Flower run's place in it are on the disk.
    """
    name = post.organisation.name
    try:
        terms, config = _verified(post, asked, blob)
        stored = _kept(post, asked.run, terms, config)
        result = _decided(post, flower_run, Offer(config, name, post.grant.fingerprint), terms, stored)
    except PolicyError as refusal:
        LOG.warning("%s", refusal)
        return TermsReply(name, "refused", refusal.rule)
    return TermsReply(name, result.answer, result.rule)


def approve(
    organisation: Organisation, run: str, terms: str | None, data: str | None = None, refuse: bool = False
) -> Stored:
    """Write down the operator's word on a run, named by the first digits of its id.

    Args:
        organisation: whose operator speaks.
        run: first digits of the run's id.
        terms: what was read, as `read_before` takes it; a refusal needs none.
        data: the data set to train on; None: the policy's, or the only one.
        refuse: say no.

    Raises:
        ConfigError: no such run, several of that name, no such data set, or other terms lie here by now.
    """
    if data is not None and data not in organisation.datasets():
        known = ", ".join(organisation.datasets()) or "none; add one with 'fedpeft node data add'"
        raise ConfigError(f"no data set {data!r}; there are {known}")
    stored = offered(organisation, run) if refuse else read_before(organisation, run, terms)
    words = read_json(organisation.approvals, {})
    given = "refused" if refuse else "approved"
    words[stored.run] = {"answer": given, "data": data, "terms": stored.digest, "time": time.time()}
    write_json(organisation.approvals, words)
    return stored


def _verified(post: Post, asked: Terms, blob: bytes) -> tuple[RunProposal, Config]:
    """The terms and their config, after key, signature and run id were checked."""
    _, old = spoken(asked.protocol, asked.oldest)
    if old:
        raise PolicyError(
            f"old{old}",
            f"the coordinator speaks protocols {asked.oldest} to {asked.protocol}, this node {OLDEST} to "
            f"{PROTOCOL}: upgrade {'this node' if old == 'node' else 'the coordinator'}",
        )
    if asked.coordinator.hex() != post.grant.coordinator:
        raise PolicyError("coordinator", "another coordinator speaks than the one that was joined")
    try:
        terms = RunProposal.decode(blob)
        if not Verifier(asked.coordinator).verify(terms.signature, terms.message(asked.run)):
            raise PolicyError("signature", "the terms are not signed by the coordinator that was joined")
        offer = Offer(build_config(json.loads(terms.config)), post.organisation.name, "")
    except PolicyError:
        raise
    except (FederationError, ConfigError, ValueError, TypeError, AttributeError) as error:
        raise PolicyError("terms", f"the terms cannot be read ({type(error).__name__})") from None
    if offer.run != asked.run:
        raise PolicyError("terms", "the run's id is not the one of its config")
    least = 2 if offer.config.base.task == "sequence-classification" else 0
    if not least <= len(set(terms.labels)) == len(terms.labels):
        raise PolicyError("labels", f"the labels must be different words, {least} at least")
    return terms, offer.config


def _kept(post: Post, run: bytes, terms: RunProposal, config: Config) -> Stored:
    """The offer as it is remembered, written down if it is new; what was agreed on stays as it was."""
    folder, encoded = post.folder(run), terms.encode().hex()
    facts = OFFER.read(folder / FILE, {})
    if facts and (folder / "node.json").exists():
        if facts["coordinator"] != post.grant.fingerprint:
            raise PolicyError("coordinator", f"run {run.hex()[:12]} belongs to another coordinator")
        _require_agreed(open_home(folder), terms, config)
        return Stored(**facts, folder=folder)
    if facts.get("terms") == encoded:
        return Stored(**facts, folder=folder)
    if not facts:
        _make_room(post)
    stored = Stored(run.hex(), post.grant.fingerprint, encoded, time.time(), folder=folder)
    stored.save()
    sync_folder(post.organisation.runs)
    return stored


def _require_agreed(home: Home, terms: RunProposal, config: Config) -> None:
    """Terms are agreed on once: offered again they say the very same, down to threads and deadline."""
    roster = {name: key.hex() for name, key in terms.roster.items()}
    same = {
        "terms": config == home.config,
        "labels": terms.labels == home.labels,
        "roster": roster == dict(home.roster),
    }
    for rule, holds in same.items():
        if not holds:
            raise PolicyError(
                rule, f"run {home.path.name[:12]}: its {rule} are not those that were agreed on"
            )


def _make_room(post: Post) -> None:
    """Keep the offers of one coordinator within bounds: refused ones are forgotten, undecided ones stay.

    What the operator said of a run is remembered apart from it (``approvals.json``).
    """
    found = [one for one in offers(post.organisation) if one.coordinator == post.grant.fingerprint]
    open_ = [one for one in found if not (one.folder / "node.json").exists()]
    if len(open_) < MOST_OFFERS:
        return
    refused = [one for one in open_ if one.answer == "refused"]
    if not refused:
        raise PolicyError(
            "offers", f"{MOST_OFFERS} offers of this coordinator lie here undecided; refuse some"
        )
    shutil.rmtree(refused[-1].folder)


def _decided(post: Post, flower_run: int, offer: Offer, terms: RunProposal, stored: Stored) -> Stored:
    """The offer with its answer, written down before it is given."""
    facts: dict[str, Any] = {"answer": "agreed", "rule": "", "sentence": ""}
    try:
        policy = post.policy()
        judge(policy, offer)
        check_roster(post.organisation, offer.config, terms.roster)
        if sentence := unpinned(post.organisation, policy, offer.config, terms.roster):
            facts |= {"answer": "waiting", "rule": "roster", "sentence": sentence}
        elif not _approved(post, policy, offer, stored):
            facts["answer"] = "waiting"
        elif not within_hours(policy, datetime.now()):
            facts |= {"answer": "waiting", "rule": "hours"}
        else:
            _agree(post, flower_run, policy, offer, terms)
    except PolicyError as refusal:
        facts = {"answer": "refused", "rule": refusal.rule, "sentence": refusal.sentence}
    decided = Stored(**(asdict(stored) | facts))
    if decided != stored:
        decided.save()
    return decided


def _word(post: Post, run: bytes) -> dict[str, Any]:
    """What the operator said of a run."""
    return read_json(post.organisation.approvals, {}).get(run.hex(), {})


def _approved(post: Post, policy: Policy, offer: Offer, stored: Stored) -> bool:
    """Whether the operator has said yes to these very terms, or need not."""
    word = _word(post, offer.run)
    if word.get("answer") == "refused":
        raise PolicyError("approval", "the operator refused this run")
    agreed = (post.folder(offer.run) / "node.json").exists()
    return agreed or not policy.approval or word.get("terms") == stored.digest


def _agree(post: Post, flower_run: int, policy: Policy, offer: Offer, terms: RunProposal) -> None:
    """Make or find the run's home, and remember which Flower run it is; not while ledger or log lack some."""
    try:
        ledger_witness.require(post.organisation)
    except PrivacyError as error:
        raise PolicyError("ledger", str(error)) from None
    folder = post.folder(offer.run)
    roster = {name: key.hex() for name, key in terms.roster.items()}
    labels, data = terms.labels, _word(post, offer.run).get("data")
    if (folder / "node.json").exists():
        data = open_home(folder).own.data
    else:
        _, dataset = _dataset(post, policy, offer, data)
        _compare(post.organisation, policy, dataset)
        _affordable(post, policy, offer, dataset)
    _settled(post, policy, offer, (labels, roster), data)
    known = read_json(post.grant.flower, {}) | {str(flower_run): offer.run.hex()}
    write_json(post.grant.flower, dict(list(known.items())[-MOST_FLOWER_RUNS:]))
    sync_folder(post.grant.folder)


def _settled(
    post: Post,
    policy: Policy,
    offer: Offer,
    agreed: tuple[tuple[str, ...], Mapping[str, str]],
    data: str | None,
) -> Home:
    """The run's home as policy and data set make it now; written only where something changed."""
    name, dataset = _dataset(post, policy, offer, data)
    facts: dict[str, Any] = {
        "name": offer.name,
        "train": dataset.file,
        "lineage": dataset.lineage,
        "config": offer.config.model_dump(mode="json"),
        "labels": list(agreed[0]),
        "coordinator": post.grant.coordinator,
        "roster": dict(agreed[1]),
        "own": asdict(_own(post, policy, offer, dataset)) | {"data": name},
    }
    folder = post.folder(offer.run)
    if HOME.read(folder / "node.json", None) != facts:
        HOME.write(folder / "node.json", facts)
        sync_folder(folder)
    return open_home(folder)


def _own(post: Post, policy: Policy, offer: Offer, dataset: DataSet) -> Own:
    """What this organisation sets for itself in a run."""
    private = offer.config.privacy.unit != "none"
    mode: Literal["off", "report", "refuse"] = (
        "report" if private and policy.audit.mode == "block" else _AUDIT[policy.audit.mode]
    )
    return Own(
        ledger=str(post.organisation.ledger),
        key=str(post.organisation.signing),
        base=own_base(policy, offer.config),
        device=policy.limits.device,
        columns=dict(dataset.columns),
        outbox=mode,
        threshold=policy.audit.threshold,
        outbox_seconds=policy.audit.seconds,
        budget=policy.privacy.lineage_epsilon,
        yearly_budget=policy.privacy.yearly_epsilon,
        budget_delta=policy.privacy.budget_delta,
        repeats=policy.privacy.max_repeats,
    )


def named_data(organisation: Organisation, policy: Policy, named: str | None) -> str | None:
    """The name of a run's data set: the approval's, the policy's, or that of the only one there is."""
    known = organisation.datasets()
    return named or policy.data or (next(iter(known)) if len(known) == 1 else None)


def _compare(organisation: Organisation, policy: Policy, dataset: DataSet) -> None:
    """Refuse records that are another lineage's too; the coordinator is told no more than the rule."""
    try:
        admit(organisation, dataset, policy.privacy.max_overlap)
    except (PrivacyError, DataError) as error:
        raise PolicyError("data", str(error)) from None


def _dataset(post: Post, policy: Policy, offer: Offer, named: str | None) -> tuple[str, DataSet]:
    """The data set of a run, if it has the columns that the run needs."""
    known, name = post.organisation.datasets(), named_data(post.organisation, policy, named)
    if name is None or name not in known:
        cause = f"no data set {name!r}" if name else f"{len(known)} data sets, and none is named"
        raise PolicyError("data", f"{cause}: 'fedpeft node approve RUN --data NAME', or data in the policy")
    wanted, held = offer.config.data, known[name].columns
    for role in ("person", "messages"):
        if getattr(wanted, role) is not None and held.get(role) is None:
            raise PolicyError("data", f"the run needs a column for {role}, which data set {name!r} lacks")
    if wanted.messages is None and held.get("messages") is not None:
        raise PolicyError("data", f"the run wants prompts and completions, data set {name!r} holds chats")
    return name, known[name]


def _affordable(post: Post, policy: Policy, offer: Offer, dataset: DataSet) -> None:
    """Refuse a run that the data set's budget cannot bear to its end; the ledger guards each round."""
    config = offer.config
    if config.privacy.unit == "none" or config.privacy.trust != "local":
        return
    plan = plan_from_config(config)
    if plan is None or plan.reproducible:
        return
    budget = policy.privacy.budget()
    ledger = Ledger(post.organisation.ledger, budget, post.organisation.signer, strict=True)
    try:
        ledger.require_affordable(dataset.lineage, plan)
    except PrivacyError as error:
        raise PolicyError("budget", str(error)) from None
