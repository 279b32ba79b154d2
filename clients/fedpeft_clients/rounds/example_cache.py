"""Tokenised records of a node, kept by its process within a bound."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedpeft.bases import Base
from fedpeft.data import Example, tokenise
from fedpeft.errors import DataError
from fedpeft_clients.rounds.node_context import NodeContext

LOG = logging.getLogger("fedpeft.node")


def load_examples(node: NodeContext) -> list[Example]:
    """The node's tokenised training records; the files are only opened when this is called.

    Kept for the next round while all nodes' examples of this process fit in 64 MiB; the least recently
    used go first. A changed file is read again.

    Where nothing but the update may tell of a record (`Home.discreet`), one that cannot be used is left out,
    which is what a gradient of zero comes to, and the node's own log says so.

    Raises:
        DataError: a record cannot be used and nothing forbids to say so; names its line, never its text. Or
            the file as a whole is not what it should be.
    """
    home, base = node.home, node.base
    stat = home.train.stat()
    columns = tuple(sorted((home.own.columns or {}).items()))
    faults: list[str] | None = [] if home.discreet else None
    key = (home.train, stat.st_mtime_ns, stat.st_size, columns, home.config.data, base.sha256, home.classes)
    key = (*key, home.discreet)
    if (kept := node.cache.examples(key)) is not None:
        return kept
    records = home.records(faults)
    examples = tokenise(records, base.tokenizer, home.config.data, base.task, home.classes, faults)
    examples = _known(examples, base, faults)
    if faults:
        told = (len(faults), len(examples) + len(faults), home.train.name, faults[0])
        LOG.warning("%d of %d records of %s cannot be used and count as nothing; the first: %s", *told)
    node.cache.keep_examples(key, examples)
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
