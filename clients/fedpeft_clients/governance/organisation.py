"""An organisation's folder: its keys, policy, data sets, coordinators, ledger and outbox log.

* ``organisation.json``: who it is; ``signing.key``, ``transport.key``: private keys, mode 0600
* ``policy.toml``: its limits; ``data.json``: its data sets by name; ``approvals.json``: the operator's word
* ``records/``, ``records.key``: keyed hashes of the records of each privacy-budget id, and their key
* ``roster.json``: keys of other organisations that its operator has compared and pinned
* ``coordinators/<fingerprint>/``: ``grant.json``, ``ca.crt`` and ``flower.json`` of each that it has joined
* ``ledger.sqlite``: privacy spent; ``outbox.jsonl``, ``outbox.head``: what left
* ``runs/<run id>/``: a home (`fedpeft_clients.rounds.run_home.Home`) for each run that it was offered
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from fedpeft.errors import ConfigError
from fedpeft.runstore import Format, state_root, write_atomic
from fedpeft.trust import Signer
from fedpeft.trust.signed_log import LogFormat, SignedLog

FILE = "organisation.json"
ORGANISATION, DATA, GRANT = Format(), Format(), Format()
"""Formats of ``organisation.json``, ``data.json`` and ``grant.json``."""
OUTBOX = LogFormat("outbox")


@dataclass(frozen=True)
class DataSet:
    """One of the organisation's data sets.

    Attributes:
        file: absolute path of a data file or datasets folder, which stays where it is.
        lineage: privacy-budget id: the name of the data set in the privacy ledger, for life.
        records: how many it held when it was added.
        columns: where prompt, completion, messages and person stand, and the file's format.
    """

    file: str
    lineage: str
    records: int
    columns: Mapping[str, str | None] = field(default_factory=dict[str, str | None])


@dataclass(frozen=True)
class Grant:
    """What a coordinator let this organisation in with.

    Attributes:
        address: ``host:port`` of its public port.
        coordinator: its Ed25519 public key, hexadecimal.
        app: SHA-256 of the only Flower app that it runs.
        federation: its name.
        issued: seconds since the epoch.
        folder: where the grant lies; not part of the file.
    """

    address: str
    coordinator: str
    app: str
    federation: str
    issued: int
    folder: Path = field(default=Path(), compare=False)

    @property
    def fingerprint(self) -> str:
        """Of the coordinator's key."""
        return self.folder.name

    @property
    def ca(self) -> Path:
        """The certificate that the coordinator's own is checked against."""
        return self.folder / "ca.crt"

    @property
    def flower(self) -> Path:
        """Which run each of the coordinator's Flower runs is."""
        return self.folder / "flower.json"

    @property
    def service(self) -> Path:
        """What the node that serves this coordinator said last."""
        return self.folder / "service.json"


@dataclass(frozen=True)
class Organisation:
    """The folder; everything in it is read anew when asked for, except keys."""

    path: Path
    name: str

    @property
    def policy(self) -> Path:
        """Its limits, TOML."""
        return self.path / "policy.toml"

    @property
    def ledger(self) -> Path:
        """Its privacy ledger, across runs and coordinators."""
        return self.path / "ledger.sqlite"

    @property
    def outbox(self) -> SignedLog:
        """The log of what left."""
        return SignedLog(self.path / "outbox.jsonl", self.signer, OUTBOX)

    @property
    def records(self) -> Path:
        """Folder of the hashes of its records (`fedpeft_clients.governance.record_overlap`)."""
        return self.path / "records"

    @property
    def approvals(self) -> Path:
        """The operator's word on runs."""
        return self.path / "approvals.json"

    @property
    def pins(self) -> Path:
        """Keys of other organisations that were compared and pinned."""
        return self.path / "roster.json"

    @property
    def runs(self) -> Path:
        """Homes of the runs that were offered or taken part in."""
        return self.path / "runs"

    @property
    def signing(self) -> Path:
        """File of the Ed25519 key."""
        return self.path / "signing.key"

    @property
    def transport(self) -> Path:
        """File of the EC key that Flower's node authentication uses."""
        return self.path / "transport.key"

    @cached_property
    def signer(self) -> Signer:
        """Its Ed25519 key."""
        if not self.signing.exists():
            raise ConfigError(f"{self.signing} is missing; restore it from the organisation's backup")
        return Signer.load_or_create(self.signing)

    def datasets(self) -> dict[str, DataSet]:
        """Its data sets by name."""
        return {name: DataSet(**facts) for name, facts in DATA.read(self.path / "data.json", {}).items()}

    def add(self, name: str, dataset: DataSet) -> None:
        """Register a data set, or change one."""
        known = {**self.datasets(), name: dataset}
        DATA.write(self.path / "data.json", {key: asdict(value) for key, value in sorted(known.items())})

    def grants(self) -> list[Grant]:
        """Coordinators that it has joined, by fingerprint."""
        paths = sorted((self.path / "coordinators").glob("*/grant.json"))
        return [Grant(**GRANT.read(path, {}), folder=path.parent) for path in paths]

    def grant(self, fingerprint: str | None = None) -> Grant:
        """One coordinator; without a fingerprint there must be exactly one.

        Raises:
            ConfigError: none of that fingerprint, none at all, or several to choose from.
        """
        grants = [grant for grant in self.grants() if fingerprint in (None, grant.fingerprint)]
        if len(grants) == 1:
            return grants[0]
        if not grants:
            raise ConfigError("no such coordinator; run 'fedpeft node join ADDRESS --token TOKEN' first")
        listed = ", ".join(grant.fingerprint for grant in grants)
        raise ConfigError(f"several coordinators are joined: give --coordinator, one of {listed}")


def init_organisation(path: Path, name: str, policy: str) -> Organisation:
    """Make an organisation's folder with new keys and the text of its policy.

    Raises:
        ConfigError: the name has characters that none may have, or the folder holds an organisation.
    """
    from fedpeft.protocol.enrolment import valid_name
    from fedpeft.trust import new_transport_key

    if not valid_name(name):
        raise ConfigError(f"name {name[:64]!r} may hold letters, digits and . _ - only, at most 64")
    if (path / FILE).exists():
        raise ConfigError(f"{path} holds an organisation; its keys are never overwritten")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    made = Organisation(path, name)
    Signer.load_or_create(made.signing)
    if not made.transport.exists():
        write_atomic(made.transport, new_transport_key())
    write_atomic(made.policy, policy.encode())
    ORGANISATION.write(path / FILE, {"name": name})
    return made


def open_organisation(path: Path | None = None) -> Organisation:
    """The organisation in a folder; without one, the only one on this machine.

    Raises:
        ConfigError: there is none, or several to choose from.
    """
    if path is None:
        paths = sorted((state_root() / "node").glob(f"*/{FILE}"))
        if len(paths) != 1:
            cause = "several nodes are" if paths else "no node is"
            raise ConfigError(f"{cause} in {state_root() / 'node'}: give --home, or run 'fedpeft node init'")
        path = paths[0].parent
    facts = ORGANISATION.read(path / FILE, {})
    if not isinstance(facts.get("name"), str):
        raise ConfigError(f"{path} holds no organisation; run 'fedpeft node init NAME --home {path}'")
    return Organisation(path.resolve(), facts["name"])
