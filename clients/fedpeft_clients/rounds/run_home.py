"""A node's home folder: who it is, what it agreed to, and where its things lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fedpeft.config import Config, build_config
from fedpeft.config.models import AuditConfig, BaseConfig, DataConfig
from fedpeft.data import Record, as_written, write_records
from fedpeft.errors import ConfigError
from fedpeft.privacy import Budget
from fedpeft.protocol.enrolment import MAX_NAME, valid_name
from fedpeft.rng import stream
from fedpeft.run_plan import classes_of
from fedpeft.runstore import Format
from fedpeft.trust import Signer

HOME = Format()
"""Of ``node.json``."""


@dataclass(frozen=True)
class OrganisationSettings:
    """What an organisation sets for itself, whatever a run's config says; all None in a simulation.

    Attributes:
        ledger: file of its ledger, which all runs share.
        key: file of its signing key.
        base: folder of the agreed base on this machine.
        device: that trains.
        columns: of its data file, as settings of ``[data]``; None: the file is as `write_records` wrote it.
        outbox: its audit of each update before it leaves, as ``audit.outbox``.
        threshold: of that audit.
        outbox_seconds: of CPU, after which the safety stop ends an attack of that audit.
        budget: its limit on epsilon for the data set's whole life.
        yearly_budget: its limit within 365 days.
        budget_delta: where both limits are read, whatever a run asks for.
        repeats: rounds of one run that may be charged again because a crash cut them off.
        data: name of its data set.
    """

    ledger: str | None = None
    key: str | None = None
    base: str | None = None
    device: str | None = None
    columns: Mapping[str, str | None] | None = None
    outbox: Literal["off", "report", "refuse"] | None = None
    threshold: float | None = None
    outbox_seconds: float | None = None
    budget: float | None = None
    yearly_budget: float | None = None
    budget_delta: float | None = None
    repeats: int | None = None
    data: str | None = None


@dataclass(frozen=True)
class Home:
    """What ``node.json`` says; the organisation's own file, which no coordinator can change.

    Attributes:
        path: the folder.
        name: the organisation's name in the federation.
        train: its training records, JSONL.
        lineage: privacy-budget id of the data set in the ledger.
        config: the config that the organisation agreed to.
        labels: labels of the task, if it has some, in agreed order.
        tapped: whether updates are written down for the audit (simulation only).
        signing_seed: seed of a reproducible signing key, hexadecimal: the mark of a simulation.
        coordinator: the coordinator's public key, hexadecimal; None: believe the first one seen.
        roster: pinned public keys of all nodes that this one ever sums with, its own included, hexadecimal by
            name; empty: it sums with nobody.
        settings: what the organisation sets for itself, if it is a real one.
    """

    path: Path
    name: str
    train: Path
    lineage: str
    config: Config
    labels: tuple[str, ...] = ()
    tapped: bool = False
    signing_seed: str | None = None
    coordinator: str | None = None
    roster: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: OrganisationSettings = OrganisationSettings()

    @property
    def reproducible(self) -> bool:
        """Whether batches follow from ``run.seed``: in a simulation, or where run and policy say so."""
        return self.signing_seed is not None or self.config.privacy.randomness == "seeded"

    @property
    def discreet(self) -> bool:
        """Whether nothing but the update may depend on a record: under DP, and in a secure sum."""
        return self.config.privacy.unit != "none" or self.config.exchange.secure.enabled

    @property
    def states(self) -> Path:
        """Folder of what the node holds after each round."""
        return self.path / "state"

    @property
    def outbox(self) -> Path:
        """Folder of envelopes as they left."""
        return self.path / "outbox"

    @property
    def times(self) -> Path:
        """Seconds and loss of training by round, which stay here."""
        return self.path / "times.jsonl"

    @property
    def step_noise(self) -> Path:
        """Rows of correlated noise that hide what left, until the last round: as secret as the records."""
        return self.path / "step-noise.npz"

    @property
    def secure(self) -> Path:
        """Folder of the secrets of secure sums, and of the record of what was let go."""
        return self.path / "secure"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return Path(self.settings.ledger) if self.settings.ledger else self.path / "ledger.sqlite"

    @property
    def key(self) -> Path:
        """File of the signing key."""
        return Path(self.settings.key) if self.settings.key else self.path / "signing.key"

    @property
    def base(self) -> BaseConfig:
        """The agreed base, where it lies on this machine."""
        places = {"model": self.settings.base, "device": self.settings.device}
        return self.config.base.model_copy(update={name: value for name, value in places.items() if value})

    @property
    def audit(self) -> AuditConfig:
        """The audit as this organisation has configured it."""
        names = ("outbox", "threshold", "outbox_seconds")
        settings = {name: value for name in names if (value := getattr(self.settings, name)) is not None}
        return self.config.audit.model_copy(update=settings)

    @property
    def budget(self) -> Budget | None:
        """The limits on the data set's epsilon; None where a run promises no privacy."""
        privacy, limits = self.config.privacy, self.settings
        if privacy.unit == "none" or privacy.randomness != "system":
            return None
        if limits.budget is not None or limits.yearly_budget is not None:
            return Budget(limits.budget, limits.yearly_budget, limits.budget_delta, limits.repeats)
        target = privacy.epsilon if privacy.trust != "central" else None
        return Budget(privacy.budget or target, privacy.yearly_budget)

    @property
    def data(self) -> DataConfig:
        """How the training records are read: the run's settings with the columns of this node's own file."""
        if self.settings.columns is None:
            return as_written(self.config.data)
        return self.config.data.model_copy(update={"encoding": "utf-8", **self.settings.columns})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The labels where they are the model's classes (sequence classification), else None."""
        return classes_of(self.config.base, self.labels)

    @property
    def rank(self) -> int:
        """Adapter rank of this node."""
        return self.config.adapter.ranks.get(self.name, self.config.adapter.rank)

    def taps(self, round: int) -> Path | None:
        """Where a round's update is written down for the audit, or None if it is not."""
        wanted = self.tapped and self.config.audit.taps(round, self.config.federation.rounds)
        return self.path / "taps" / f"r{round:02d}" if wanted else None


@dataclass(frozen=True)
class Simulated:
    """What only a simulation sets of an organisation.

    Attributes:
        tapped: write updates down for the audit.
        labels: labels of the task, if it has some, in agreed order.
        roster: names of all organisations whose updates are summed securely.
    """

    tapped: bool = False
    labels: Sequence[str] = ()
    roster: Sequence[str] = ()


def create_home(
    path: Path,
    name: str,
    records: Iterable[Record],
    config: Config,
    simulated: Simulated = Simulated(),
) -> Home:
    """Make the home of a simulated organisation; making it again with the same things changes nothing.

    Args:
        path: the folder to make.
        name: letters, digits, dot, dash and underscore, at most 64.
        records: its training records, which are written into the home.
        config: the config it agrees to.
        simulated: what else the simulation knows.

    Raises:
        ConfigError: the name has other characters.
    """
    if not valid_name(name):
        raise ConfigError(f"node name {name!r} may hold letters, digits and . _ - only, at most {MAX_NAME}")
    write_records(path / "train.jsonl", records)
    keys = {other: Signer.from_seed(_signing_seed(config, other)).public for other in simulated.roster}
    facts: dict[str, Any] = {
        "name": name,
        "train": "train.jsonl",
        "lineage": name,
        "config": config.model_dump(mode="json"),
        "labels": list(simulated.labels),
        "tapped": simulated.tapped and config.audit.enabled,
        "signing_seed": _signing_seed(config, name).hex(),
        "roster": {other: key.hex() for other, key in keys.items()},
    }
    HOME.write(path / "node.json", facts)
    return open_home(path)


def _signing_seed(config: Config, name: str) -> bytes:
    """Of a simulated organisation: any of them can compute the others' keys."""
    return stream(config.run.seed, 0, name, "signing").bytes(32)


def open_home(path: Path) -> Home:
    """Read a node's home.

    Raises:
        ConfigError: there is no node.json, or it says something that is not understood.
    """
    file = path / "node.json"
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        raise ConfigError(f"{str(path)!r} is not a node's home: it has no node.json") from None
    return _read(file, stamp)


@lru_cache(maxsize=256)
def _read(file: Path, stamp: int) -> Home:
    try:
        facts = dict(HOME.read(file, {}))
        config, labels = build_config(facts.pop("config")), tuple(facts.pop("labels", ()))
        train = file.parent / facts.pop("train")
        settings = OrganisationSettings(**facts.pop("own", {}))
        return Home(path=file.parent, train=train, config=config, labels=labels, settings=settings, **facts)
    except (ConfigError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} is not a valid node.json ({type(error).__name__}: {error})") from None
