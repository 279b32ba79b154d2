"""What a node's process keeps between messages because reading or checking it anew takes long."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.privacy import Budget, Ledger
from fedpeft.trust import Signer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedpeft.data import Example

LIMIT_BYTES = 64 * 2**20
"""Of the tokenised records of all nodes of a process."""


@dataclass(eq=False)
class ProcessCache:
    """Opened ledgers, tokenised records and language priors, of any number of runs, adapters and nodes.

    All of it can be made again from files: losing it costs time and changes nothing that leaves.

    Attributes:
        priors: language prior by content hash of the base, shape ``(tokens,)``.
    """

    priors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _ledgers: dict[tuple[Path, Budget | None, bool], Ledger] = field(default_factory=dict)
    _examples: OrderedDict[Hashable, list[Example]] = field(default_factory=OrderedDict)

    def ledger(self, path: Path, budget: Budget | None, signer: Signer, strict: bool = False) -> Ledger:
        """A ledger whose entries are verified once; one whose file is gone is opened anew.

        Raises:
            PrivacyError: as `fedpeft.privacy.Ledger`.
        """
        key = (path, budget, strict)
        if key not in self._ledgers or not path.exists():
            self._ledgers[key] = Ledger(path, budget, signer, strict=strict)
        return self._ledgers[key]

    def forget_ledger(self, path: Path) -> None:
        """Verify all entries again if a ledger is ever found at this path."""
        self._ledgers = {key: ledger for key, ledger in self._ledgers.items() if key[0] != path}

    def examples(self, key: Hashable) -> list[Example] | None:
        """The tokenised records that were kept under a key, if they still are."""
        if key in self._examples:
            self._examples.move_to_end(key)
        return self._examples.get(key)

    def keep_examples(self, key: Hashable, examples: list[Example]) -> None:
        """Keep tokenised records; beyond `LIMIT_BYTES` those that were used longest ago go first."""
        self._examples[key] = examples
        while sum(map(_size, self._examples.values())) > LIMIT_BYTES and len(self._examples) > 1:
            self._examples.popitem(last=False)

    def clear(self) -> None:
        """Forget everything, as a new process would have."""
        self.priors.clear()
        self._ledgers.clear()
        self._examples.clear()


PROCESS = ProcessCache()
"""The one of this process, which every message's context uses unless it is given another."""


def _size(examples: list[Example]) -> int:
    return sum(example.ids.nbytes + example.weights.nbytes + 128 for example in examples)
