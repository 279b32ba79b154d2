"""ReCIT: personal data from the update of an adapter on a base that was strengthened for it.

The malicious coordinator first calls `strengthen` and hands out its base with a warm adapter; `recit` then
reads the updates. Source: Xie et al., arXiv 2504.20570; we know its abstract and reviews, so the wording of
the Personal Note and the pairing are ours. The names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft_attacks.recit.attack import recit
    from fedpeft_attacks.recit.notes import Recipe, Sample, strengthen, with_note

__all__ = ["Recipe", "Sample", "recit", "strengthen", "with_note"]

__getattr__ = lazy(
    __name__,
    {
        "recit": "attack",
        **dict.fromkeys(("Recipe", "Sample", "strengthen", "with_note"), "notes"),
    },
)
