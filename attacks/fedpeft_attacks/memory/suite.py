"""All attacks on the released adapter of a run, in the order of a report."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedpeft.progress_reports import each
from fedpeft.runstore import RunStore
from fedpeft_attacks.memory.extraction_tests import canaries, prompts
from fedpeft_attacks.memory.findings import MemoryFinding
from fedpeft_attacks.memory.member_records import Material
from fedpeft_attacks.memory.membership_tests import membership
from fedpeft_attacks.memory.released_model import Effort, ReleasedModel

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

Progress = Callable[[str], None]


def memory_findings(
    store: RunStore, attached: Attached, effort: Effort | None = None, progress: Progress | None = None
) -> list[MemoryFinding]:
    """Attack the released adapter as an outsider would who holds it, the base, and candidates to test.

    Works on any finished run whose nodes' records lie in it. What there is no material for is left out:
    canaries where none were planted, text where the model writes none, membership without non-members, and
    rates of false alarms that need more of them.

    Args:
        store: the run.
        attached: the base with the released adapter's values (`material.released`); unchanged on return.
        effort: how much is tried; None: as the full audit does.
        progress: called with one line before each attack.

    Raises:
        AuditError: a damaged file of canaries, or a number of shadows that cannot be used.
        DataError: records that cannot be read.
    """
    effort = effort or Effort()
    target = ReleasedModel(Material.of(store, effort.records, effort.canaries), attached, effort)
    findings: list[MemoryFinding] = []
    attacks = (("canaries", canaries), ("prompts", prompts), ("membership", membership))
    for name, attack in each(attacks, "attack on the adapter"):
        if progress is not None:
            progress(f"audit: the released adapter, {name}")
        findings += attack(target)
    return findings
