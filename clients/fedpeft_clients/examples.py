"""Tokenised records of the nodes of this process, kept within a bound."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from fedpeft.bases import Base
from fedpeft.data import Example, tokenise
from fedpeft_clients.home import Home

LIMIT_BYTES = 64 * 2**20

_kept: OrderedDict[tuple[Any, ...], list[Example]] = OrderedDict()


def load_examples(home: Home, base: Base) -> list[Example]:
    """The node's tokenised training records; the files are only opened when this is called.

    Kept for the next round while all nodes' examples of this process fit in 64 MiB; the least recently
    used go first. A changed file is read again.

    Raises:
        DataError: a record cannot be used; names its line, never its text.
    """
    stat = home.train.stat()
    columns = tuple(sorted((home.own.columns or {}).items()))
    key = (home.train, stat.st_mtime_ns, stat.st_size, columns, home.config.data, base.sha256, home.classes)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    examples = tokenise(home.records(), base.tokenizer, home.config.data, base.task, home.classes)
    _kept[key] = examples
    while sum(map(_size, _kept.values())) > LIMIT_BYTES and len(_kept) > 1:
        _kept.popitem(last=False)
    return examples


def _size(examples: list[Example]) -> int:
    return sum(example.ids.nbytes + example.weights.nbytes + 128 for example in examples)
