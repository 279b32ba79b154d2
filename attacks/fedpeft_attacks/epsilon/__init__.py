"""Empirical epsilon: what an auditor measures of a run's privacy, beside what its plan claims."""

from fedpeft_attacks.epsilon.check import EpsilonCheck
from fedpeft_attacks.epsilon.plan_checks import Effort, epsilon_checks
from fedpeft_attacks.epsilon.run_checks import score_checks, tap_checks

__all__ = ["Effort", "EpsilonCheck", "epsilon_checks", "score_checks", "tap_checks"]
