"""Tokenised records of the nodes of this process, kept within a bound."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fedpeft.bases import Base
from fedpeft.data import Example, tokenise
from fedpeft.errors import DataError
from fedpeft_clients.rounds.run_home import Home

LOG = logging.getLogger("fedpeft.node")
LIMIT_BYTES = 64 * 2**20

_kept: OrderedDict[tuple[Any, ...], list[Example]] = OrderedDict()


def load_examples(home: Home, base: Base) -> list[Example]:
    """The node's tokenised training records; the files are only opened when this is called.

    Kept for the next round while all nodes' examples of this process fit in 64 MiB; the least recently
    used go first. A changed file is read again.

    Where nothing but the update may tell of a record (`Home.discreet`), one that cannot be used is left out,
    which is what a gradient of zero comes to, and the node's own log says so.

    Raises:
        DataError: a record cannot be used and nothing forbids to say so; names its line, never its text. Or
            the file as a whole is not what it should be.
    """
    stat = home.train.stat()
    columns = tuple(sorted((home.own.columns or {}).items()))
    faults: list[str] | None = [] if home.discreet else None
    key = (home.train, stat.st_mtime_ns, stat.st_size, columns, home.config.data, base.sha256, home.classes)
    key = (*key, home.discreet)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    records = home.records(faults)
    examples = tokenise(records, base.tokenizer, home.config.data, base.task, home.classes, faults)
    examples = _known(examples, base, faults)
    if faults:
        told = (len(faults), len(examples) + len(faults), home.train.name, faults[0])
        LOG.warning("%d of %d records of %s cannot be used and count as nothing; the first: %s", *told)
    _kept[key] = examples
    while sum(map(_size, _kept.values())) > LIMIT_BYTES and len(_kept) > 1:
        _kept.popitem(last=False)
    return examples


def _known(examples: Sequence[Example], base: Base, faults: list[str] | None) -> list[Example]:
    """The examples of tokens that the base has; others would end a GPU's use, not only a step."""
    most = base.model.get_input_embeddings().weight.shape[0]
    known = [example for example in examples if int(example.ids.max(initial=0)) < most]
    cause = f"a record has a token beyond the base's {most}; tokenizer and base do not belong together"
    if len(known) < len(examples):
        if faults is None:
            raise DataError(cause)
        faults += [cause] * (len(examples) - len(known))
    return known


def _size(examples: list[Example]) -> int:
    return sum(example.ids.nbytes + example.weights.nbytes + 128 for example in examples)
