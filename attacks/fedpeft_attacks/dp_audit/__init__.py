"""Empirical epsilon: what an auditor measures of a run's privacy, beside what its plan claims."""

from fedpeft_attacks.dp_audit.check import EpsilonCheck
from fedpeft_attacks.dp_audit.plan_audit import Effort, epsilon_checks
from fedpeft_attacks.dp_audit.run_audit import score_checks, tap_checks

__all__ = ["Effort", "EpsilonCheck", "epsilon_checks", "score_checks", "tap_checks"]
