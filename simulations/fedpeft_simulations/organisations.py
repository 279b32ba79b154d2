"""The organisations of a simulated federation: embedded ones, or a user's own records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.config.models import EMBEDDED, Config
from fedpeft.data import Notes, Record, is_record_source, partition, read_folder, read_records, split
from fedpeft.errors import DataError
from fedpeft.rng import stream

_REMOTE = re.compile(r"[a-z][a-z0-9]*://|[\w-][\w.-]*/[\w-]+$")
"""An address, or the id of a data set on a hub."""


@dataclass(frozen=True)
class Organisation:
    """One simulated data holder: its name and its own records."""

    name: str
    train: Sequence[Record]
    validation: Sequence[Record]
    test: Sequence[Record]


@dataclass(frozen=True)
class Federation:
    """All organisations of a run, the records by which the global adapter is judged, notes on the data."""

    organisations: tuple[Organisation, ...]
    test: tuple[Record, ...]
    notes: Notes = field(default_factory=Notes)


def load_federation(config: Config) -> Federation:
    """Read, split and name the organisations that a config asks for.

    Raises:
        DataError: records that cannot be read, or too few of them to split.
    """
    if config.data.source == EMBEDDED:
        return _embedded(config)
    notes = Notes()
    groups = _groups(config, notes)
    organisations = tuple(_organisation(name, records, config) for name, records in groups.items())
    if config.data.test:
        test = read_records(Path(config.data.test).expanduser(), config.data, notes=notes)
    else:
        test = [record for organisation in organisations for record in organisation.test]
    if not test:
        raise DataError("no records for the global test; give data.test or a larger data.test_share")
    _note_overlap(organisations, test, notes)
    return Federation(organisations, tuple(test), notes)


def _note_overlap(organisations: Sequence[Organisation], test: Sequence[Record], notes: Notes) -> None:
    """Note records of the global test that are trained on too."""
    trained = {(r.prompt, r.completion) for organisation in organisations for r in organisation.train}
    if count := sum((record.prompt, record.completion) in trained for record in test):
        notes.records["of the global test are trained on too, so that its figures flatter"] += count


def _embedded(config: Config) -> Federation:
    from fedpeft_simulations.embedded.organisations import global_test, make_organisation

    data, seed = config.data, config.run.seed
    made = [make_organisation(i, data.samples, seed, data.mix) for i in range(config.federation.nodes)]
    organisations = tuple(
        Organisation(item.name, item.train, item.validation, item.test)
        for item in sorted(made, key=lambda item: item.name)
    )
    return Federation(organisations, tuple(global_test(data.test_samples, seed)))


def _groups(config: Config, notes: Notes) -> dict[str, list[Record]]:
    data, source = config.data, Path(config.data.source).expanduser()
    if not source.exists():
        hint = "; nothing is downloaded: fetch it and give its folder" if _REMOTE.match(data.source) else ""
        raise DataError(f"no data at {data.source!r}; data.source is a folder, a file, or 'embedded'{hint}")
    if data.partition == "file" and is_record_source(source):
        raise DataError(
            f"{str(source)!r} is one data set, and data.partition = 'file' wants a folder with one file for "
            "each organisation; choose data.partition = 'iid', 'dirichlet', 'pathological' or 'natural'"
        )
    if data.partition == "file":
        return _one_for_each_file(source, config, notes)
    records = read_records(source, data, notes=notes)
    parts = partition(records, data, config.federation.nodes, config.run.seed)
    width = len(str(max(len(parts) - 1, 1)))
    return {f"node-{index:0{width}d}": part for index, part in enumerate(parts)}


def _one_for_each_file(source: Path, config: Config, notes: Notes) -> dict[str, list[Record]]:
    groups, nodes = read_folder(source, config.data, notes), config.federation.nodes
    if "nodes" in config.federation.model_fields_set and nodes != len(groups):
        raise DataError(
            f"federation.nodes = {nodes}, but {str(source)!r} holds {len(groups)} data files, one for each "
            "organisation; leave federation.nodes out, or split one data set with data.partition = 'iid'"
        )
    return groups


def _organisation(name: str, records: Sequence[Record], config: Config) -> Organisation:
    data = config.data
    test_share = 0.0 if data.test else data.test_share
    shares = (1 - data.validation - test_share, data.validation, test_share)
    if shares[0] <= 0:
        raise DataError("data.validation and data.test_share leave nothing to train on; lower them")
    train, validation, test = split(records, shares, stream(config.run.seed, 0, name, "split"))
    if not train:
        raise DataError(f"organisation {name!r} has {len(records)} records, too few to split; add records")
    return Organisation(name, train, validation, test)
