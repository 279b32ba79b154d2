"""Mutants of records of a person that are drawn one by one, and of integer noise in the node."""

from __future__ import annotations

from harness import Mutant

UNITS, BUDGET, PLAN = (
    "fedpeft.training.privacy_units",
    "fedpeft.privacy.ledger.budget",
    "fedpeft.privacy.plan",
)
MIXED, DRAWS = "fedpeft/test_privacy_mixture.py::", "fedpeft/test_privacy_per_example_units.py::"

MUTANTS = (
    Mutant(
        23,
        "all records of a person can be drawn in one step",
        UNITS,
        "for index in _capped(unit, plan.records_per_unit, source)",
        "for index in unit",
        (DRAWS + "test_a_step_never_holds_more_than_the_cap_of_a_persons_records",),
    ),
    Mutant(
        23,
        "a person whose records are drawn one by one is accounted for as one record",
        "fedpeft.privacy.accounting",
        "records = event.records if isinstance(event, MixtureSteps) else 1",
        "records = 1",
        (MIXED + "test_epsilon_is_never_below_an_independent_recomputation[0.1-3.0-4-100]",),
    ),
    Mutant(
        23,
        "a person's account is charged for one of the person's records",
        BUDGET,
        "charge.event if steps == 1 else _of_a_part(charge.event)",
        "_of_a_part(charge.event)",
        (MIXED + "test_a_charge_is_a_mixture_for_a_person_and_two_steps_for_a_record",),
    ),
    Mutant(
        23,
        "a record that displaces another counts as one step",
        BUDGET,
        "return 1 if self.unit == asked.unit else 2",
        "return 1",
        (MIXED + "test_a_charge_is_a_mixture_for_a_person_and_two_steps_for_a_record",),
    ),
    Mutant(
        25,
        "rounding to whole steps is left out of a node's own sensitivity",
        PLAN,
        "if self.grid is not None:\n            event",
        'if self.grid is not None and self.trust != "local":\n            event',
        ("fedpeft/test_privacy_plan.py::test_a_nodes_own_integers_are_accounted_for_on_their_grid",),
    ),
)
