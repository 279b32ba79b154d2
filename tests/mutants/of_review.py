"""The 23 mutants of an independent review of the privacy code.

Three of them went unnoticed then: noise for the configured clip instead of that in force, coins from the
public seed, and gates that let through what is not a number.
"""

from __future__ import annotations

from harness import Mutant

CENTRAL, MATRIX, PLANNING = (
    "fedpeft.aggregation.central_dp",
    "fedpeft.privacy.matrix",
    "fedpeft.privacy.plan_builder",
)
ACCOUNTING, PLAN, SPENDING = (
    "fedpeft.privacy.accounting",
    "fedpeft.privacy.plan",
    "fedpeft.privacy.ledger.budget",
)
STEP, SUM, GATES = (
    "fedpeft.training.dp.dpsgd",
    "fedpeft.training.dp.per_example",
    "fedpeft.training.dp.engine_selection",
)
PASSES, LOCAL, SAMPLING = (
    "fedpeft.training.dp.backward_passes",
    "fedpeft.training.local",
    "fedpeft.privacy.sampling",
)
ROSTER, CHANNEL = "fedpeft_server.rounds.roster", "fedpeft_server.rounds.update_channel"

NOISY, COUPLED = "fedpeft/test_privacy_central.py::", "fedpeft/test_privacy_coupling.py::"
PLANS, FIGURES = "fedpeft/test_privacy_plan.py::", "fedpeft/test_privacy_accounting.py::"
SERVER, TURNS = "server/test_privacy_bugs.py::", "server/test_roster.py::"
EXAMPLES, LEDGER = "fedpeft/test_privacy_per_example.py::", "fedpeft/test_privacy_ledger.py::"
CLAIMS = "fedpeft/test_privacy_ledger_claims.py::"
IN_FORCE = NOISY + "test_noise_and_bound_follow_the_clip_in_force"
ONE_RECORD = COUPLED + "test_one_record_moves_the_sum_by_at_most_the_clip"

SCALE = "scale = sum_multiplier(self.plan) * self.clip"
FACTORS = "factors = torch.clamp(self.clip.gradient * (1 - CLIP_MARGIN) / norms, max=1.0)"
ADDED = "total += plan.deviation * _unit_noise(attached, mechanism, size)"
CLOSE = "return bool((errors <= tolerance * scale + 1e-12).all())"
SEEDED = '__import__("fedpeft.privacy.csprng", fromlist=["x"]).seeded'

MUTANTS = (
    Mutant(
        24,
        "an adaptive clip's noise follows the configured clip, not the clip in force",
        CENTRAL,
        SCALE,
        SCALE.replace("self.clip", "self.plan.clip"),
        (IN_FORCE,),
    ),
    Mutant(
        11,
        "nodes that come late shift the turns of the others",
        ROSTER,
        "for index, name in enumerate(enrolled) if index % turns",
        "for index, name in enumerate(sorted(enrolled)) if index % turns",
        (TURNS + "test_a_late_node_changes_nobodys_turn",),
    ),
    Mutant(
        11,
        "rounds between two turns are rounded up",
        PLANNING,
        "return int(1 / participation + 1e-9)",
        "return math.ceil(1 / participation - 1e-9)",
        (TURNS + "test_in_turns_each_node_is_asked_once_in_a_period",),
    ),
    Mutant(
        11,
        "after a crash the bands that reach into later rounds are forgotten",
        MATRIX,
        "return participations(min(rounds, rounds - done + bands - 1), separation)",
        "return participations(rounds - done, separation)",
        (NOISY + "test_a_banded_run_is_reserved_once_and_its_repetition_is_charged_for_what_is_left",),
    ),
    Mutant(
        1,
        "noise shrinks with the share of values on the support",
        STEP,
        ADDED,
        ADDED + " * (size / attached.layout.size) ** 0.5",
        ("fedpeft/test_training_private.py::test_a_seeded_round_equals_the_naive_twin",),
    ),
    Mutant(
        2,
        "a person's records are clipped in two parts",
        "fedpeft.training.privacy_units",
        "owned.setdefault(example.person, [])",
        "owned.setdefault(example.person + str(len(example.ids) % 2), [])",
        (
            "fedpeft/test_privacy_per_example_units.py::test_a_draw_of_persons_holds_at_most_the_cap_of_one_and_never_two_together",
        ),
    ),
    Mutant(
        33,
        "a node's values are not cut to the room that its integers have",
        "fedpeft.secagg.grid_values",
        "scaled = np.clip(exact * (1 - MARGIN) / step, -limit, limit)",
        "scaled = exact * (1 - MARGIN) / step",
        (
            "fedpeft/secagg/test_discrete_gaussian.py::test_one_unit_more_changes_the_sum_by_the_sensitivity_at_most",
        ),
    ),
    Mutant(
        17,
        "one share of noise for all values of a node",
        "fedpeft.secagg.grid_values",
        "noise = share_of_noise(values.size, grid.share(plan.noise_multiplier), source)",
        "noise = share_of_noise(1, grid.share(plan.noise_multiplier), source).repeat(values.size)",
        (
            "clients/test_privacy_bugs.py::"
            "test_as_few_shares_as_a_sum_may_hold_add_up_to_the_noise_that_is_accounted_for",
        ),
    ),
    Mutant(
        24,
        "a large update weighs more in the count of an adaptive clip",
        CENTRAL,
        "count += 0.5 if norm <= clip else -0.5",
        "count += 0.5 if norm <= clip else -0.5 * min(norm / clip, 4.0)",
        (NOISY + "test_one_node_moves_the_sum_by_at_most_the_clip_and_the_count_by_half",),
    ),
    Mutant(
        28,
        "the audit of a private run may hold back what leaves",
        "fedpeft_clients.governance.run_approval",
        '"report" if private and policy.audit.mode == "block" else _AUDIT[policy.audit.mode]',
        "_AUDIT[policy.audit.mode]",
        (
            "clients/test_policy.py::"
            "test_the_audit_of_the_policy_overrides_the_runs_and_blocks_only_without_privacy",
        ),
    ),
    Mutant(
        18,
        "sum and noise are rounded to hundredths",
        STEP,
        "= total / mechanism.plan.expected_batch_size",
        "= np.round(total, 2) / mechanism.plan.expected_batch_size",
        (EXAMPLES + "test_an_empty_draw_is_noise_alone",),
    ),
    Mutant(
        2,
        "clipped norms end above the clip",
        SUM,
        FACTORS,
        FACTORS.replace("1 - CLIP_MARGIN", "1 + 2e-3"),
        (EXAMPLES + "test_clipped_sum_equals_the_naive_sum",),
    ),
    Mutant(
        28,
        "a draw by secret coins is told by name",
        CHANNEL,
        'if self.setup.config.federation.selection != "poisson":',
        'if self.setup.config.federation.selection != "":',
        ("server/test_central.py::test_the_draw_of_secret_coins_leaves_no_names",),
    ),
    Mutant(
        12,
        "a restored run forgets its correlated noise",
        CENTRAL,
        'history = arrays["history"]',
        'history = 0 * arrays["history"]',
        (NOISY + "test_bands_correlate_the_noise_of_rounds_as_the_inverse_matrix_says",),
    ),
    Mutant(
        12,
        "a restored run mixes noise of two matrices",
        CENTRAL,
        'if not np.array_equal(arrays.get("coefficients", np.zeros(0)), self.coefficients):',
        "if False:",
        (NOISY + "test_rows_of_other_coefficients_are_dropped",),
    ),
    Mutant(
        19,
        "gates let through what is not a number",
        GATES,
        CLOSE,
        "return not bool((errors > tolerance * scale + 1e-12).any())",
        (COUPLED + "test_a_batch_that_is_not_finite_does_not_pass",),
    ),
    Mutant(
        16,
        "secret coins follow the run's public seed",
        CHANNEL,
        'return randomness(self.account.plan, self.setup.config.run.seed, round, "participation")',
        f'return {SEEDED}(bytes(24) + self.setup.config.run.seed.to_bytes(8, "big"))',
        (SERVER + "test_the_coins_of_a_private_draw_are_no_function_of_the_public_seed",),
    ),
    Mutant(
        24,
        "noise under a fixed clip follows the private norm",
        CENTRAL,
        SCALE,
        SCALE.replace("self.clip", "min(self.clip, float(np.linalg.norm(total)) or self.clip)"),
        (NOISY + "test_before_its_noise_a_release_moves_by_at_most_the_clip_over_the_public_divisor",),
    ),
    Mutant(
        12,
        "a reservation of last year counts as old though its data are opened today",
        SPENDING,
        'moment = max(float(body["time"]), started)',
        'moment = float(body["time"])',
        (CLAIMS + "test_a_reservation_counts_for_the_year_in_which_its_data_are_opened",),
    ),
    Mutant(
        11,
        "joint epsilon is read at the largest delta that was ever asked for",
        SPENDING,
        "return next((charge.delta for charge in newest if charge.delta), DELTA)",
        "return max((charge.delta for charge in private if charge.delta), default=DELTA)",
        (LEDGER + "test_a_larger_delta_of_an_older_run_makes_no_epsilon_smaller",),
    ),
    Mutant(
        10,
        "privacy losses are rounded down",
        ACCOUNTING,
        "value_discretization_interval=interval)",
        "value_discretization_interval=interval, pessimistic_estimate=False)",
        (FIGURES + "test_equals_dp_accounting_called_directly[0.001-0.08-0.8-100]",),
    ),
    Mutant(
        35,
        "noise of a trusted coordinator covers a promise against the coordinator",
        SPENDING,
        "if finer or TRUSTS.index(self.trust) < TRUSTS.index(asked.trust):",
        "if finer:",
        (CLAIMS + "test_a_stronger_trust_covers_a_weaker_one_and_never_the_reverse",),
    ),
    Mutant(
        11,
        "participations in turns are rounded down",
        PLAN,
        "math.ceil(count / every))",
        "max(1, count // every))",
        (PLANS + "test_a_banded_run_counts_participations",),
    ),
    Mutant(
        32,
        "a node takes part in a smaller sum than it asks for",
        "fedpeft.secagg.terms",
        "    if context.cohort != member.cohort:\n",
        "    if context.cohort.threshold != member.cohort.threshold:\n",
        ("fedpeft/secagg/test_hostile.py::test_terms_other_than_the_agreed_are_refused",),
    ),
)
