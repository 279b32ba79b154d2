"""Memorisation and membership: what the released adapter gives away of the records it was trained on."""

from fedpeft_attacks.memory.findings import MemoryFinding
from fedpeft_attacks.memory.member_records import released
from fedpeft_attacks.memory.membership_tests import canary_scores
from fedpeft_attacks.memory.released_model import Effort
from fedpeft_attacks.memory.suite import memory_findings

__all__ = ["Effort", "MemoryFinding", "canary_scores", "memory_findings", "released"]
