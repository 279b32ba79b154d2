"""Candidate records of each node, where they stand among the node's records, and the auxiliary records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Record, read_written, tokenise
from fedpeft.rng import stream
from fedpeft.runstore import RunStore
from fedpeft_attacks.evidence.taps import GRADIENT, UPDATE, Tap
from fedpeft_attacks.memory.member_records import some, text_of
from fedpeft_attacks.views import NotCovered

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

EVEN, DRAWN, FIRST = 128, 64, 24
"""Own candidates of a node: drawn evenly from all its records; drawn from those that the audited rounds drew,
of which so many may be those of the first steps, whose gradient is a stage of its own."""

NEVER, AUXILIARY, FEWEST = 64, 64, 16
"""Records that nobody trained on, for each node; auxiliary records; the fewest that are compared with."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """Candidate records of one node: its own first, then records of the same kind that nobody trained on.

    Attributes:
        examples: the records as the run trains on them.
        places: where each of its own stands among all that the node can use, ascending, int64.
        even: which of its own were drawn evenly from all of them.
    """

    examples: list[Example] = field(repr=False)
    places: NDArray[np.int64] = field(repr=False)
    even: Mask = field(repr=False)

    @property
    def of_the_node(self) -> list[Example]:
        """Records of the node."""
        return self.examples[: len(self.places)]

    @property
    def never(self) -> Mask:
        """Which candidates nobody trained on."""
        return np.arange(len(self.examples)) >= len(self.places)

    def among(self, places: frozenset[int]) -> Mask:
        """Which candidates stand at these places of the node's records."""
        return self._wide(np.isin(self.places, list(places)))

    def evenly(self) -> Mask:
        """Which candidates were drawn evenly from all records of the node."""
        return self._wide(self.even)

    def _wide(self, chosen: Mask) -> Mask:
        return np.concatenate([chosen, np.zeros(len(self.examples) - len(chosen), bool)])


@dataclass(frozen=True)
class Material:
    """What the adversary tries, and what it compares with.

    Attributes:
        groups: candidates of each audited node, by name.
        auxiliary: records that are no candidates, of other organisations where the run has such records.
        of_gradients: whether nodes train by SGD, so that updates are sums of gradients.
        usable: all records of each audited node by their place, which the adversary does not see.
    """

    groups: dict[str, Candidates]
    auxiliary: list[Example] = field(repr=False)
    of_gradients: bool
    usable: dict[str, list[Example]] = field(repr=False)


def material_of(store: RunStore, attached: Attached, taps: Sequence[Tap]) -> Material | NotCovered:
    """Read the records of a run and choose candidates, by the run's seed.

    Returns:
        Them, or why nothing can be judged: draws or values were not written down, factors start anew each
        round, or the records of a node are not those that it drew.

    Raises:
        DataError: records that cannot be read.
    """
    if attached.aggregator is not None:
        name = attached.method.name
        return NotCovered(f"each round of {name} starts from another adapter, which is not rebuilt")
    if any(tap.draws is None for tap in taps):
        return NotCovered("the run did not write down which records each step drew; run it again")
    if any(tap.start is None for tap in taps):
        return NotCovered("the run did not write down the adapter before each round; run it again")
    names = sorted({tap.node for tap in taps})
    written = {home.name: _read(home, store) for home in store.homes if (home / "train.jsonl").is_file()}
    if missing := [name for name in names if name not in written]:
        return NotCovered(f"the run holds no records of {', '.join(missing)}, which would be candidates")
    reader, groups = _Reader(store, attached), dict[str, Candidates]()
    usable: dict[str, list[Example]] = {}
    audited = {record.group for name in names for record in written[name]}
    foreign, unseen = _apart(store, written, audited)
    for name in names:
        usable[name] = reader.examples(written[name], [])
        tapped = [tap for tap in taps if tap.node == name]
        if changed := [tap.round for tap in tapped if not _is_of(tap, usable[name])]:
            return NotCovered(f"the records of {name} are not those that round {changed[0]} drew")
        kinds = {record.group for record in written[name]}
        never = [record for record in unseen if record.group in kinds]
        groups[name] = _candidates(reader, tapped, usable[name], never)
    rng = stream(store.config.run.seed, 0, "", "audit-auxiliary-sample")
    auxiliary = reader.examples(some(foreign, AUXILIARY, rng))
    return Material(groups, auxiliary, store.config.federation.optimiser == "sgd", usable)


@dataclass(frozen=True)
class _Reader:
    """Records as the run trained on them."""

    store: RunStore
    attached: Attached

    def examples(self, records: Sequence[Record], faults: list[str] | None = None) -> list[Example]:
        base, labels = self.attached.base, self.store.labels
        named = base.task == "sequence-classification"
        classes = json.loads(labels.read_text(encoding="utf-8")) if named else None
        return tokenise(records, base.tokenizer, self.store.config.data, base.task, classes, faults)


def _candidates(
    reader: _Reader, taps: Sequence[Tap], usable: Sequence[Example], never: Sequence[Record]
) -> Candidates:
    """Of one node, from its taps, its examples and records of the same kind that nobody trained on."""
    rng = stream(reader.store.config.run.seed, 0, taps[0].node, "audit-candidates")
    even = set(some(range(len(usable)), EVEN, rng))
    first = some(sorted({place for tap in taps for place in tap.drawn(GRADIENT)} - even), FIRST, rng)
    rest = {place for tap in taps for place in tap.drawn(UPDATE)} - even - set(first)
    places = sorted([*even, *first, *some(sorted(rest), DRAWN - len(first), rng)])
    examples = [usable[place] for place in places] + reader.examples(some(never, NEVER, rng))
    return Candidates(examples, np.array(places, np.int64), np.isin(places, list(even)))


def _is_of(tap: Tap, usable: Sequence[Example]) -> bool:
    """Whether the records at the places that a round drew are those that it wrote down."""
    places = sorted(tap.drawn(UPDATE))
    if places and places[-1] >= len(usable):
        return False
    rows = (usable[place].ids.tolist() for place in places)
    return [row for row in rows if row] == tap.all  # an empty record is not written down


def _read(home: Path, store: RunStore) -> list[Record]:
    return read_written(home / "train.jsonl", store.config.data)


def _apart(
    store: RunStore, written: dict[str, list[Record]], audited: set[str | None]
) -> tuple[list[Record], list[Record]]:
    """Test records that no node has: those of organisations that are not audited, and the others.

    Where the first are too few, all organisations being audited, a third of the others takes their place.
    """
    known = {text_of(record) for records in written.values() for record in records}
    records = read_written(store.test, store.config.data) if store.test.is_file() else []
    unseen = [record for record in records if text_of(record) not in known]
    foreign = [record for record in unseen if record.group not in audited]
    if len(foreign) < FEWEST:
        order = stream(store.config.run.seed, 0, "", "audit-auxiliary").permutation(len(unseen))
        foreign = [unseen[place] for place in sorted(order[: len(unseen) // 3])]
    chosen = {text_of(record) for record in foreign}
    return foreign, [record for record in unseen if text_of(record) not in chosen]
