"""Splitting one data set into organisations with the partitioners of flwr-datasets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from fedpeft.config.models import DataConfig
from fedpeft.data.records import Record
from fedpeft.errors import DataError
from fedpeft.extras import needs
from fedpeft.rng import stream


def partition(records: Sequence[Record], cfg: DataConfig, nodes: int, seed: int) -> list[list[Record]]:
    """Split records into one list per node; the same arguments give the same lists.

    * iid: shuffled and cut evenly.
    * dirichlet: each class is spread by a Dirichlet draw with concentration ``cfg.alpha``.
    * pathological: each node holds ``cfg.classes_per_node`` classes.
    * natural: records of one id stay together; with more ids than nodes, ids are dealt out in turn.

    Classes and ids come from ``cfg.partition_column`` (`Record.group`), without one from the completion.

    Raises:
        DataError: fewer records, classes or ids than the split needs, or partition 'file', which is not a
            split: it takes one file per organisation.
    """
    if cfg.partition == "file":
        raise DataError(
            "data.partition 'file' needs a folder with one file per organisation; this is one data set"
        )
    if len(records) < nodes:
        raise DataError(f"{len(records)} records cannot be split into {nodes} nodes; take fewer nodes")
    rng = stream(seed, 0, "", f"partition:{cfg.partition}")
    shuffled = [records[index] for index in rng.permutation(len(records))]
    keys = [_key(record, cfg) for record in shuffled]
    parts = _indices(keys, cfg, nodes, int(rng.integers(2**31)))
    for number, part in enumerate(parts, 1):
        if not part:
            raise DataError(
                f"partition {cfg.partition!r} leaves node {number} of {nodes} empty; {_remedy(cfg)}"
            )
    return [[shuffled[index] for index in part] for part in parts]


def _key(record: Record, cfg: DataConfig) -> str:
    if cfg.partition_column is None and cfg.partition != "natural":
        return record.completion
    if record.group is None:
        raise DataError(
            f"partition {cfg.partition!r} needs data.partition_column, the column of the label or id"
        )
    return record.group


def _indices(keys: list[str], cfg: DataConfig, nodes: int, seed: int) -> list[list[int]]:
    with needs("simulation", "data.partition"):
        import datasets

    partitioner, count = _partitioner(keys, cfg, nodes, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"index": list(range(len(keys))), "key": keys})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about its own retries; a failure is reported below
            loaded = [
                [int(i) for i in partitioner.load_partition(number)["index"]] for number in range(count)
            ]
    except ValueError:
        loaded = []
    if not loaded:
        raise DataError(f"partition {cfg.partition!r} cannot give {nodes} nodes their share; {_remedy(cfg)}")
    if cfg.partition == "natural":
        return [sorted(index for part in loaded[node::nodes] for index in part) for node in range(nodes)]
    return loaded


def _partitioner(keys: list[str], cfg: DataConfig, nodes: int, seed: int) -> tuple[Any, int]:
    """The partitioner and how many partitions it makes."""
    with needs("simulation", "data.partition"):
        from flwr_datasets import partitioner as kinds

    distinct = len(set(keys))
    if cfg.partition == "iid":
        return kinds.IidPartitioner(num_partitions=nodes), nodes
    if cfg.partition == "dirichlet":
        smallest = max(1, min(10, len(keys) // (4 * nodes)))
        return kinds.DirichletPartitioner(nodes, "key", cfg.alpha, smallest, seed=seed), nodes
    if cfg.partition == "pathological":
        if distinct < cfg.classes_per_node:
            raise DataError(
                f"data.classes_per_node is {cfg.classes_per_node}, but there are {distinct} classes"
            )
        return kinds.PathologicalPartitioner(
            nodes, "key", cfg.classes_per_node, "deterministic", seed=seed
        ), nodes
    if distinct < nodes:
        raise DataError(f"{distinct} ids cannot be split into {nodes} nodes; take fewer nodes")
    return kinds.NaturalIdPartitioner("key"), distinct


def _remedy(cfg: DataConfig) -> str:
    remedies = {
        "dirichlet": "raise data.alpha or take fewer nodes",
        "pathological": "raise data.classes_per_node or take fewer nodes",
    }
    return remedies.get(cfg.partition, "take fewer nodes")
