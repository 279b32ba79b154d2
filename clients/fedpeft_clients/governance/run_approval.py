"""Terms of a run: read, checked and stored, and the home that a run gets once it is agreed on."""

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
from fedpeft_clients.governance.policy_rules import ProposedRun, check_policy, own_base
from fedpeft_clients.governance.proposals import FILE, PROPOSAL, SavedProposal, offered, offers, read_before
from fedpeft_clients.governance.record_overlap import admit, changed
from fedpeft_clients.governance.rosters import check_roster, unpinned
from fedpeft_clients.outbox import ledger_witness
from fedpeft_clients.rounds.run_home import HOME, Home, OrganisationSettings, open_home

MOST_OFFERS = 64
"""Runs of one coordinator that may lie here without having been agreed on; more are refused unread."""
MOST_FLOWER_RUNS = 256
LOG = logging.getLogger("fedpeft.node")
_AUDIT: dict[str, Literal["off", "report", "refuse"]] = {"off": "off", "warn": "report", "block": "refuse"}


@dataclass(frozen=True)
class CoordinatorLink:
    """The link between an organisation and a coordinator that it has joined."""

    organisation: Organisation
    grant: Grant

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> CoordinatorLink:
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
        """The home of the run that a Flower run is, checked against today's policy.

        Raises:
            PolicyError: its terms were not agreed on, or the policy or the operator refuses now.
        """
        name = read_json(self.grant.flower, {}).get(str(flower_run))
        if name is None:
            raise PolicyError(
                "terms", f"Flower run {flower_run} sent an order before its terms were agreed on"
            )
        home = open_home(self.organisation.runs / name)
        policy, proposal = self.policy(), ProposedRun(home.config, home.name, self.grant.fingerprint)
        if home.coordinator != self.grant.coordinator:
            raise PolicyError("coordinator", f"run {name[:12]} belongs to another coordinator")
        check_policy(policy, proposal)
        if _decision(self, proposal.run).get("answer") == "refused":
            raise PolicyError("approval", f"run {name[:12]} was refused by the operator")
        _, dataset = _dataset(self, policy, proposal, home.settings.data)
        if changed(self.organisation, dataset):
            _compare(self.organisation, policy, dataset)
        roster = {member: bytes.fromhex(key) for member, key in home.roster.items()}
        check_roster(self.organisation, home.config, roster)
        if sentence := unpinned(self.organisation, policy, home.config, roster):
            raise PolicyError("roster", sentence)
        return _settled(self, policy, proposal, (home.labels, home.roster), home.settings.data)


def answer(link: CoordinatorLink, flower_run: int, asked: Terms, blob: bytes) -> TermsReply:
    """Check the terms of a run and answer them; only names of rules leave the node.

    Once this says ``agreed``, the run's home and the Flower run's place in it are on the disk.
    """
    name = link.organisation.name
    try:
        terms, config = _verified(link, asked, blob)
        saved = _saved(link, asked.run, terms, config)
        result = _decided(link, flower_run, ProposedRun(config, name, link.grant.fingerprint), terms, saved)
    except PolicyError as refusal:
        LOG.warning("%s", refusal)
        return TermsReply(name, "refused", refusal.rule)
    return TermsReply(name, result.answer, result.rule)


def approve(
    organisation: Organisation, run: str, terms: str | None, data: str | None = None, refuse: bool = False
) -> SavedProposal:
    """Store the operator's decision on a run, named by the first digits of its id.

    Args:
        organisation: whose operator decides.
        run: first digits of the run's id.
        terms: what was read, as `read_before` takes it; a refusal needs none.
        data: the data set to train on; None: the policy's, or the only one.
        refuse: refuse the run.

    Raises:
        ConfigError: no such run, several of that name, no such data set, or other terms lie here by now.
    """
    if data is not None and data not in organisation.datasets():
        known = ", ".join(organisation.datasets()) or "none; add one with 'fedpeft node data add'"
        raise ConfigError(f"no data set {data!r}; there are {known}")
    saved = offered(organisation, run) if refuse else read_before(organisation, run, terms)
    words = read_json(organisation.approvals, {})
    decision = "refused" if refuse else "approved"
    words[saved.run] = {"answer": decision, "data": data, "terms": saved.digest, "time": time.time()}
    write_json(organisation.approvals, words)
    return saved


def _verified(link: CoordinatorLink, asked: Terms, blob: bytes) -> tuple[RunProposal, Config]:
    """The terms and their config, after key, signature and run id were checked."""
    _, old = spoken(asked.protocol, asked.oldest)
    if old:
        raise PolicyError(
            f"old{old}",
            f"the coordinator speaks protocols {asked.oldest} to {asked.protocol}, this node {OLDEST} to "
            f"{PROTOCOL}: upgrade {'this node' if old == 'node' else 'the coordinator'}",
        )
    if asked.coordinator.hex() != link.grant.coordinator:
        raise PolicyError("coordinator", "this is not the coordinator that was joined")
    try:
        terms = RunProposal.decode(blob)
        if not Verifier(asked.coordinator).verify(terms.signature, terms.message(asked.run)):
            raise PolicyError("signature", "the terms are not signed by the coordinator that was joined")
        proposal = ProposedRun(build_config(json.loads(terms.config)), link.organisation.name, "")
    except PolicyError:
        raise
    except (FederationError, ConfigError, ValueError, TypeError, AttributeError) as error:
        raise PolicyError("terms", f"the terms cannot be read ({type(error).__name__})") from None
    if proposal.run != asked.run:
        raise PolicyError("terms", "the run's id is not the one of its config")
    least = 2 if proposal.config.base.task == "sequence-classification" else 0
    if not least <= len(set(terms.labels)) == len(terms.labels):
        raise PolicyError("labels", f"the labels must be different words, {least} at least")
    return terms, proposal.config


def _saved(link: CoordinatorLink, run: bytes, terms: RunProposal, config: Config) -> SavedProposal:
    """The proposal as it is stored, and stored now if it is new; what was agreed on stays as it was."""
    folder, encoded = link.folder(run), terms.encode().hex()
    facts = PROPOSAL.read(folder / FILE, {})
    if facts and (folder / "node.json").exists():
        if facts["coordinator"] != link.grant.fingerprint:
            raise PolicyError("coordinator", f"run {run.hex()[:12]} belongs to another coordinator")
        _require_agreed(open_home(folder), terms, config)
        return SavedProposal(**facts, folder=folder)
    if facts.get("terms") == encoded:
        return SavedProposal(**facts, folder=folder)
    if not facts:
        _limit_proposals(link)
    saved = SavedProposal(run.hex(), link.grant.fingerprint, encoded, time.time(), folder=folder)
    saved.save()
    sync_folder(link.organisation.runs)
    return saved


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


def _limit_proposals(link: CoordinatorLink) -> None:
    """Keep the offers of one coordinator within bounds: refused ones are forgotten, undecided ones stay.

    The operator's decision on a run is stored apart from it (``approvals.json``).
    """
    coordinator = link.grant.fingerprint
    proposals = [known for known in offers(link.organisation) if known.coordinator == coordinator]
    open_ = [known for known in proposals if not (known.folder / "node.json").exists()]
    if len(open_) < MOST_OFFERS:
        return
    refused = [known for known in open_ if known.answer == "refused"]
    if not refused:
        raise PolicyError(
            "offers", f"{MOST_OFFERS} offers of this coordinator lie here undecided; refuse some"
        )
    shutil.rmtree(refused[-1].folder)


def _decided(
    link: CoordinatorLink, flower_run: int, proposal: ProposedRun, terms: RunProposal, saved: SavedProposal
) -> SavedProposal:
    """The proposal with its answer, stored before the answer is sent."""
    facts: dict[str, Any] = {"answer": "agreed", "rule": "", "sentence": ""}
    try:
        policy = link.policy()
        check_policy(policy, proposal)
        check_roster(link.organisation, proposal.config, terms.roster)
        if sentence := unpinned(link.organisation, policy, proposal.config, terms.roster):
            facts |= {"answer": "waiting", "rule": "roster", "sentence": sentence}
        elif not _approved(link, policy, proposal, saved):
            facts["answer"] = "waiting"
        elif not within_hours(policy, datetime.now()):
            facts |= {"answer": "waiting", "rule": "hours"}
        else:
            _agree(link, flower_run, policy, proposal, terms)
    except PolicyError as refusal:
        facts = {"answer": "refused", "rule": refusal.rule, "sentence": refusal.sentence}
    decided = SavedProposal(**(asdict(saved) | facts))
    if decided != saved:
        decided.save()
    return decided


def _decision(link: CoordinatorLink, run: bytes) -> dict[str, Any]:
    """The operator's decision on a run; empty where there is none."""
    return read_json(link.organisation.approvals, {}).get(run.hex(), {})


def _approved(link: CoordinatorLink, policy: Policy, proposal: ProposedRun, saved: SavedProposal) -> bool:
    """Whether the operator has approved these very terms, or need not."""
    decision = _decision(link, proposal.run)
    if decision.get("answer") == "refused":
        raise PolicyError("approval", "the operator refused this run")
    agreed = (link.folder(proposal.run) / "node.json").exists()
    return agreed or not policy.approval or decision.get("terms") == saved.digest


def _agree(
    link: CoordinatorLink, flower_run: int, policy: Policy, proposal: ProposedRun, terms: RunProposal
) -> None:
    """Make or find the run's home and store its Flower run; refused while ledger or log lack entries."""
    try:
        ledger_witness.require(link.organisation)
    except PrivacyError as error:
        raise PolicyError("ledger", str(error)) from None
    folder = link.folder(proposal.run)
    roster = {name: key.hex() for name, key in terms.roster.items()}
    labels, data = terms.labels, _decision(link, proposal.run).get("data")
    if (folder / "node.json").exists():
        data = open_home(folder).settings.data
    else:
        _, dataset = _dataset(link, policy, proposal, data)
        _compare(link.organisation, policy, dataset)
        _affordable(link, policy, proposal, dataset)
    _settled(link, policy, proposal, (labels, roster), data)
    known = read_json(link.grant.flower, {}) | {str(flower_run): proposal.run.hex()}
    write_json(link.grant.flower, dict(list(known.items())[-MOST_FLOWER_RUNS:]))
    sync_folder(link.grant.folder)


def _settled(
    link: CoordinatorLink,
    policy: Policy,
    proposal: ProposedRun,
    agreed: tuple[tuple[str, ...], Mapping[str, str]],
    data: str | None,
) -> Home:
    """The run's home as policy and data set make it now; written only where something changed."""
    name, dataset = _dataset(link, policy, proposal, data)
    facts: dict[str, Any] = {
        "name": proposal.name,
        "train": dataset.file,
        "lineage": dataset.lineage,
        "config": proposal.config.model_dump(mode="json"),
        "labels": list(agreed[0]),
        "coordinator": link.grant.coordinator,
        "roster": dict(agreed[1]),
        "own": asdict(_organisation_settings(link, policy, proposal, dataset)) | {"data": name},
    }
    folder = link.folder(proposal.run)
    if HOME.read(folder / "node.json", None) != facts:
        HOME.write(folder / "node.json", facts)
        sync_folder(folder)
    return open_home(folder)


def _organisation_settings(
    link: CoordinatorLink, policy: Policy, proposal: ProposedRun, dataset: DataSet
) -> OrganisationSettings:
    """What this organisation sets for itself in a run."""
    private = proposal.config.privacy.unit != "none"
    mode: Literal["off", "report", "refuse"] = (
        "report" if private and policy.audit.mode == "block" else _AUDIT[policy.audit.mode]
    )
    return OrganisationSettings(
        ledger=str(link.organisation.ledger),
        key=str(link.organisation.signing),
        base=own_base(policy, proposal.config),
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
    """Refuse records that another privacy-budget id covers too; only the rule's name leaves the node."""
    try:
        admit(organisation, dataset, policy.privacy.max_overlap)
    except (PrivacyError, DataError) as error:
        raise PolicyError("data", str(error)) from None


def _dataset(
    link: CoordinatorLink, policy: Policy, proposal: ProposedRun, named: str | None
) -> tuple[str, DataSet]:
    """The data set of a run, if it has the columns that the run needs."""
    known, name = link.organisation.datasets(), named_data(link.organisation, policy, named)
    if name is None or name not in known:
        cause = f"no data set {name!r}" if name else f"{len(known)} data sets, and none is named"
        raise PolicyError("data", f"{cause}: 'fedpeft node approve RUN --data NAME', or data in the policy")
    wanted, columns = proposal.config.data, known[name].columns
    for role in ("person", "messages"):
        if getattr(wanted, role) is not None and columns.get(role) is None:
            raise PolicyError("data", f"the run needs a column for {role}, which data set {name!r} lacks")
    if wanted.messages is None and columns.get("messages") is not None:
        raise PolicyError("data", f"the run needs prompts and completions, data set {name!r} holds chats")
    return name, known[name]


def _affordable(link: CoordinatorLink, policy: Policy, proposal: ProposedRun, dataset: DataSet) -> None:
    """Refuse a run that exceeds the data set's budget before its end; the ledger checks each round."""
    config = proposal.config
    if config.privacy.unit == "none" or config.privacy.trust != "local":
        return
    plan = plan_from_config(config)
    if plan is None or plan.reproducible:
        return
    budget = policy.privacy.budget()
    ledger = Ledger(link.organisation.ledger, budget, link.organisation.signer, strict=True)
    try:
        ledger.require_affordable(dataset.lineage, plan)
    except PrivacyError as error:
        raise PolicyError("budget", str(error)) from None
