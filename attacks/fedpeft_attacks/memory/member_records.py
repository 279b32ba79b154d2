"""What the attacks on a released adapter are tried on: records that were trained on, and others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedpeft.adapters import Attached, attach
from fedpeft.bases import load_base
from fedpeft.config import Config
from fedpeft.data import Record, read_written, tokenise
from fedpeft.errors import AuditError
from fedpeft.rng import stream
from fedpeft.runstore import RunStore
from fedpeft_attacks.memory.canaries import Canary, read_canaries

if TYPE_CHECKING:
    from fedpeft.data import Example

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Material:
    """Records of one run.

    Attributes:
        config: the run's settings.
        labels: its labels, if it has some.
        members: records that nodes trained on, without canaries.
        others: records of the same kinds that none of them trained on.
        trained: canaries that were trained on.
        left_out: canaries that the coin left out.
    """

    config: Config
    labels: list[str]
    members: list[Record]
    others: list[Record]
    trained: list[Canary]
    left_out: list[Canary]

    @classmethod
    def of(cls, store: RunStore, records: int, canaries: int) -> Material:
        """Read a run directory; more records or canaries than are asked for are drawn from, by the seed.

        Non-members are the run's test records, without any that a node has too, and only of groups
        (organisations, in the embedded data) that members are of: else the attacks would tell groups apart.

        Args:
            store: the run.
            records: the most members, and the most others.
            canaries: the most canaries that were trained on, and the most that were not.

        Raises:
            AuditError: a damaged file of canaries.
            DataError: records that cannot be read.
        """
        config = store.config
        homes = store.homes if (store.path / "nodes").is_dir() else []
        planted = read_canaries(homes)
        secret = {text_of(canary.record) for canary in planted}
        files = (home / "train.jsonl" for home in homes)
        written = [read_written(file, config.data) for file in files if file.is_file()]
        members = [record for part in written for record in part if text_of(record) not in secret]
        others = _alike(read_written(store.test, config.data) if store.test.is_file() else [], members)
        labels = json.loads(store.labels.read_text()) if store.labels.is_file() else []
        rng = stream(config.run.seed, 0, "", "audit-memory")
        return cls(
            config,
            labels,
            some(members, records, rng),
            some(others, records, rng),
            some([canary for canary in planted if canary.trained], canaries, rng),
            some([canary for canary in planted if not canary.trained], canaries, rng),
        )

    def examples(self, records: Sequence[Record], attached: Attached) -> list[Example]:
        """Records as they are trained on."""
        base, labels = attached.base, self.labels
        classes = labels if base.task == "sequence-classification" else None
        return tokenise(records, base.tokenizer, self.config.data, base.task, classes)


def released(store: RunStore) -> Attached:
    """The run's base with the adapter's final values; whatever was attached in this process is taken off.

    Raises:
        AuditError: the run has no final state.
        BaseModelError: the base cannot be loaded.
    """
    config = store.config
    labels = json.loads(store.labels.read_text()) if config.base.task != "causal-lm" else []
    attached = attach(load_base(config.base, len(labels) or None), config.adapter, config.run.seed)
    try:
        with np.load(store.path / "state" / "final.npz", allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise AuditError(
            f"{str(store.path)!r} has no final state ({type(error).__name__}); finish it with --resume"
        ) from None
    attached.begin(
        arrays["values"] if attached.aggregator is None else attached.aggregator.from_tensors(arrays)
    )
    return attached


def _alike(records: Sequence[Record], members: Sequence[Record]) -> list[Record]:
    known, groups = {text_of(record) for record in members}, {record.group for record in members}
    return [record for record in records if text_of(record) not in known and record.group in groups]


def text_of(record: Record) -> tuple[object, ...]:
    """What makes two records the same text."""
    return record.prompt, record.completion, record.messages


def some(items: Sequence[_Item], most: int, rng: np.random.Generator) -> list[_Item]:
    """At most so many items, drawn without replacement, in their order."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in sorted(rng.choice(len(items), size=most, replace=False))]
