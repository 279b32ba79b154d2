"""Memorisation and membership: what the released adapter gives away of the records it was trained on."""

from fedpeft_attacks.memory.findings import MemoryFinding
from fedpeft_attacks.memory.material import released
from fedpeft_attacks.memory.room import Effort
from fedpeft_attacks.memory.suite import memory_findings
from fedpeft_attacks.memory.told_apart import canary_scores

__all__ = ["Effort", "MemoryFinding", "canary_scores", "memory_findings", "released"]
