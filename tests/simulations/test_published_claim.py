"""What a run publishes of its privacy: for what the claim holds, and nothing that the noise is to hide."""

from __future__ import annotations

import pytest

from fedpeft.epsilons import UNBOUNDED
from fedpeft.runstore.summary import PrivacyFacts
from fedpeft_simulations.run_summary import privacy_statement


def facts(trust, epsilon=8.0, unit="node"):
    return PrivacyFacts(
        unit=unit,
        adjacency="replace-by-zero" if trust == "distributed" else "add-or-remove-one",
        trust=trust,
        epsilon=epsilon,
        delta=1e-5,
        accountant="RDP",
        plan=None,
        nodes=[],
    )


def test_a_claim_under_distributed_trust_is_for_the_sum():
    """One node's own update bears one share of the noise: its epsilon is far above the printed one."""
    said = privacy_statement(facts("distributed"))
    assert "the sums of all nodes' updates" in said and "replace-by-zero" in said
    assert "Not for the update of one node" in said and "Each node's updates" not in said


def test_other_claims_say_what_they_hold_for():
    assert "For the released models" in privacy_statement(facts("central"))
    assert "The coordinator saw each update without noise" in privacy_statement(facts("central"))
    assert "For each node's updates: (8.000, 1e-05)" in privacy_statement(facts("local", unit="record"))


@pytest.mark.parametrize("trust", ["local", "central", "distributed"])
def test_a_claim_without_a_bound_is_none(trust):
    said = privacy_statement(facts(trust, UNBOUNDED))
    assert said.startswith("No differential privacy: epsilon is unbounded") and "None" not in said
