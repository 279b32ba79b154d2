"""Whole records from an update: which tokens, in which order, in which record.

`assemble` is the attack of the registry. A caller that has its own token bag (ReCIT's filter and pairing)
calls `assemble_from(view, bag, budget)`: tokens outside of what the bag claims bear a penalty in nats, and
``Bag()`` leaves the choice to the update alone. ``assembled.sequences`` are whole records with their start
token, ``assembled.certain`` says which of them the attack itself knows to be right, and
``assembled.unexplained`` is the share of the observed values that they leave, 0 where all are found.
The names below are loaded when they are first used, so that importing the package imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft_attacks.work import NOTHING, SAFETY, Meter, Work
from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft_attacks.sequences.assembly import assemble, assemble_from


@dataclass(frozen=True)
class Budget:
    """How much work an assembly may do.

    Attributes:
        steps: of the search: one lengthens all partial records of a beam by a token, or swaps a token. A tree
            of prefixes, where the view allows one, takes up to `longest` of its own beside them.
        beam: partial records that are kept.
        longest: tokens of the longest record that is tried, the start token included.
        seconds: processor time of the safety stop; an answer that it ends is not finished.
    """

    steps: int = 2048
    beam: int = 3
    longest: int = 96
    seconds: float = SAFETY

    def meter(self) -> Meter:
        """A count of these steps, whose safety stop begins to run."""
        return Meter(self.steps, self.seconds)


@dataclass(frozen=True)
class Bag:
    """Tokens that are thought to be in the batch.

    Attributes:
        ranking: token ids, the most likely first; may be empty.
        claimed: how many of them are thought to be there; 0: nobody knows.
        penalty: log weight in nats that every other token loses.
    """

    ranking: tuple[int, ...] = ()
    claimed: int = 0
    penalty: float = 25.0


@dataclass(frozen=True)
class Assembled:
    """What an assembly found.

    Attributes:
        sequences: one record each as token ids, with the start and the end token.
        certain: which of them the attack knows to be right: their summed gradient is the observed one.
        unexplained: share of the observed energy that all of them together leave, 0 where all are right.
        work: what was done for it.
    """

    sequences: tuple[tuple[int, ...], ...]
    certain: tuple[bool, ...]
    unexplained: float
    work: Work = NOTHING


__all__ = ["Assembled", "Bag", "Budget", "assemble", "assemble_from"]

__getattr__ = lazy(__name__, {"assemble": "assembly", "assemble_from": "assembly"})
