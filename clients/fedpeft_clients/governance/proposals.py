"""Runs as coordinators offered them, as they lie in the organisation's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedpeft.config import Config, build_config
from fedpeft.errors import ConfigError
from fedpeft.protocol.messages import RunProposal
from fedpeft.runstore import Format
from fedpeft_clients.governance.organisation import Organisation

FILE = "terms.json"
PROPOSAL = Format()
"""Of ``terms.json``."""
LEAST_DIGITS = 32
"""Of the hash by which terms are named: 128 bits, as their author may look for two that share them."""


@dataclass(frozen=True)
class SavedProposal:
    """An offered run as it lies in the organisation's folder.

    Attributes:
        run: 32 hexadecimal digits.
        coordinator: fingerprint of the coordinator's key.
        terms: the coordinator's terms, encoded, hexadecimal.
        since: seconds since the epoch.
        answer: ``agreed``, ``waiting`` or ``refused``.
        rule: that refused.
        sentence: why, for the operator.
    """

    run: str
    coordinator: str
    terms: str
    since: float
    answer: str = "waiting"
    rule: str = ""
    sentence: str = ""
    folder: Path = field(default=Path(), compare=False)

    @property
    def digest(self) -> str:
        """What an approval or a pin names: SHA-256 of the terms."""
        return hashlib.sha256(bytes.fromhex(self.terms)).hexdigest()

    @property
    def config(self) -> Config:
        """Of the run."""
        return build_config(json.loads(RunProposal.decode(bytes.fromhex(self.terms)).config))

    @property
    def roster(self) -> Mapping[str, bytes]:
        """Public keys by name of all nodes that sum securely; of other runs it is empty."""
        return RunProposal.decode(bytes.fromhex(self.terms)).roster

    def save(self) -> None:
        """Write it, atomically."""
        facts = asdict(self)
        del facts["folder"]
        PROPOSAL.write(self.folder / FILE, facts)


def offers(organisation: Organisation) -> list[SavedProposal]:
    """All runs that were offered, the newest first."""
    proposals = [
        PROPOSAL.read(path, {}) | {"folder": path.parent} for path in organisation.runs.glob(f"*/{FILE}")
    ]
    return sorted((SavedProposal(**facts) for facts in proposals), key=lambda proposal: -proposal.since)


def offered(organisation: Organisation, run: str) -> SavedProposal:
    """The one run that was offered under an id with these first digits.

    Raises:
        ConfigError: no such run, or several of that name.
    """
    matches = [proposal for proposal in offers(organisation) if run and proposal.run.startswith(run)]
    if len(matches) != 1:
        waiting = ", ".join(proposal.run[:12] for proposal in offers(organisation)) or "none"
        raise ConfigError(f"run {run!r} names {len(matches)} offered runs; those offered are: {waiting}")
    return matches[0]


def read_before(organisation: Organisation, run: str, terms: str | None) -> SavedProposal:
    """The offered run whose terms the operator has read: the coordinator may send others at any time.

    Args:
        organisation: that was offered it.
        run: first digits of the run's id.
        terms: at least `LEAST_DIGITS` digits of the hash that was shown with the terms.

    Raises:
        ConfigError: no such run, several of that name, or other terms lie here by now.
    """
    saved = offered(organisation, run)
    if not (terms and len(terms) >= LEAST_DIGITS and saved.digest.startswith(terms.lower())):
        raise ConfigError(
            f"the terms of run {saved.run[:12]} are not those of --terms {terms or '(none)'}: read them "
            "with 'fedpeft node runs', their keys with 'fedpeft node roster show RUN', and give the hash "
            "that is shown there"
        )
    return saved
