"""Six mutants of noise that is correlated over a node's steps: groups, coefficients, rows after a crash."""

from __future__ import annotations

from harness import Mutant

MATRIX, STEPS, PLAN, LOCAL, NODE = (
    "fedpeft.privacy.matrix",
    "fedpeft.privacy.step_matrix",
    "fedpeft.privacy.plan",
    "fedpeft.training.local",
    "fedpeft_clients.rounds.step_noise",
)
BANDS, ROUNDS = "fedpeft/test_privacy_step_matrix.py::", "clients/test_step_noise.py::"

MUTANTS = (
    Mutant(
        1,
        "optimised coefficients are scaled to a first value of 1: their columns are longer than the clip's",
        MATRIX,
        "minimum = minimum / np.linalg.norm(minimum)",
        "minimum = minimum / abs(minimum[0])",
        (BANDS + "test_no_draws_move_the_release_by_more_than_as_many_gaussian_releases",),
    ),
    Mutant(
        6,
        "draws from groups are accounted for at the rate of all units",
        PLAN,
        "return Steps(self.step_rate, ",
        "return Steps(self.sampling_probability, ",
        (BANDS + "test_the_charges_of_the_rounds_are_the_runs",),
    ),
    Mutant(
        6,
        "each step draws from all groups at the rate of its own",
        LOCAL,
        "units = groups[matrix.turn if matrix else 0]",
        "units = [unit for group in groups for unit in group]",
        (BANDS + "test_under_edits_no_unit_is_drawn_twice_in_b_steps_and_all_at_b_times_the_rate",),
    ),
    Mutant(
        12,
        "a record that was edited in mid-run enters another group",
        STEPS,
        "if left[digest] > 0:",
        "if left[digest] >= 0:",
        (BANDS + "test_what_is_edited_or_added_takes_no_part_and_copies_are_no_more_than_at_first",),
    ),
    Mutant(
        13,
        "after a crash the same rows of noise are subtracted from a second release",
        NODE,
        'if str(arrays["entry"][0]) == entry else None',
        "",
        (ROUNDS + "test_after_a_round_that_was_cut_off_a_new_matrix_begins",),
    ),
    Mutant(
        27,
        "a unit's group follows its place among the others",
        STEPS,
        'groups[index] = int.from_bytes(digest, "little") % len(self.column)',
        "groups[index] = index % len(self.column)",
        (BANDS + "test_a_units_group_depends_on_the_unit_and_the_key_alone",),
    ),
)
