"""Mutants of plans, accountant and calibration, and of the audit of the noise."""

from __future__ import annotations

from harness import Mutant

ACCOUNTING, PLAN, PLANNING = (
    "fedpeft.privacy.accounting",
    "fedpeft.privacy.plan",
    "fedpeft.privacy.plan_builder",
)
CALIBRATION, RENYI = "fedpeft.privacy.calibration", "fedpeft.privacy.renyi"
AUDIT, INTERVALS = "fedpeft_attacks.dp_audit.mechanism", "fedpeft_attacks.dp_audit.intervals"

FIGURES = "fedpeft/test_privacy_accounting.py::"
PLANS = "fedpeft/test_privacy_plan.py::"
CURVES = "fedpeft/test_privacy_curves.py::"
GRIDS, SUMS = "fedpeft.privacy.grid", "fedpeft/secagg/test_discrete_gaussian.py::"
BENCH = "simulations/test_bench_privacy.py::"

READ = "return float(total.get_epsilon_for_delta(left))"
LOSSES = "from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)"
ONE = FIGURES + "test_equals_dp_accounting_called_directly[0.001-0.08-0.8-100]"
LOWER = FIGURES + "test_below_prv_and_rdp_but_not_below_the_lower_bound[0.032-2.0-940]"

MUTANTS = (
    Mutant(
        5,
        "the rate falls back on the size of the node's own data set",
        PLANNING,
        'if records is None and config.data.source == "embedded":',
        "if records is None:",
        (FIGURES + "test_unsound_configs_are_refused",),
    ),
    Mutant(
        6,
        "rounds whose nodes everybody knows are amplified",
        PLANNING,
        'secret_coins = federation.selection == "poisson" and privacy.trust == "central"',
        "secret_coins = federation.participation < 1",
        (PLANS + "test_q_b_and_t_are_the_configured_constants",),
    ),
    Mutant(
        9,
        "the accountant answers for replaced units",
        ACCOUNTING,
        LOSSES,
        LOSSES.replace(
            "interval)",
            'interval, neighboring_relation=__import__("dp_accounting").NeighboringRelation.REPLACE_ONE)',
        ),
        (ONE,),
    ),
    Mutant(
        9,
        "noise over a replacement's sensitivity, twice the clip, is read as noise over the clip",
        ACCOUNTING,
        LOSSES,
        LOSSES.replace("noise,", "2 * noise,"),
        (LOWER,),
    ),
    Mutant(
        9,
        "the same in the curves of Rényi",
        RENYI,
        "return ORDERS / (2 * noise**2)",
        "return ORDERS / (8 * noise**2)",
        (CURVES + "test_the_gaussian_curve_equals_dp_accounting",),
    ),
    Mutant(
        10,
        "the central limit theorem's formula (GDP)",
        ACCOUNTING,
        READ,
        "one = [e for e in events if isinstance(e, Steps)]\n"
        "    growth = [e.repeats * math.expm1(e.noise_multiplier**-2) for e in one]\n"
        "    squares = [e.sampling_probability**2 * g for e, g in zip(one, growth)]\n"
        "    limit = _one_step(1.0, sum(squares) ** -0.5, interval)\n"
        "    return float(limit.get_epsilon_for_delta(delta))",
        (LOWER,),
    ),
    Mutant(
        10,
        "the classical formula of the Gaussian mechanism, composed by square roots",
        ACCOUNTING,
        READ,
        "one = [e for e in events if isinstance(e, Steps)]\n"
        "    squares = [e.repeats * (e.sampling_probability / e.noise_multiplier) ** 2 for e in one]\n"
        "    return math.sqrt(2 * math.log(1.25 / delta) * sum(squares))",
        (LOWER,),
    ),
    Mutant(
        11,
        "a run counts the steps of one round",
        PLAN,
        "return self.steps_per_round * self.rounds",
        "return self.steps_per_round",
        (PLANS + "test_q_b_and_t_are_the_configured_constants",),
    ),
    Mutant(
        11,
        "equal events count once",
        ACCOUNTING,
        "merged[event._replace(repeats=0)] += event.repeats",
        "merged[event._replace(repeats=0)] = event.repeats",
        (
            CURVES + "test_a_count_beside_training_costs_less_than_its_own_epsilon",
            FIGURES + "test_joint_composition_equals_dp_accounting_and_beats_the_sum",
        ),
    ),
    Mutant(
        11,
        "more local steps are taken than were accounted for",
        "fedpeft.training.local",
        "if plan.steps > privacy.steps_per_round:",
        "if plan.steps > privacy.steps:",
        ("fedpeft/test_training.py::test_more_steps_than_accounted_are_refused",),
    ),
    Mutant(
        25,
        "the length that stochastic rounding adds is not part of the sensitivity",
        GRIDS,
        "return min(self._always, self._mostly)",
        "return self.steps_per_clip",
        (SUMS + "test_the_sensitivity_is_passed_as_rarely_as_the_plan_says",),
    ),
    Mutant(
        25,
        "the bound on rounding that holds mostly is taken to hold always",
        ACCOUNTING,
        "return math.fsum(event.failure * event.repeats for event in rounded)",
        "return math.fsum(event.failure for event in rounded for _ in ())",
        (PLANS + "test_failures_are_paid_for_by_delta",),
    ),
    Mutant(
        35,
        "shares of noise below the steps of the grid count as Gaussian",
        GRIDS,
        "if variance >= SMOOTH**2 else 0.0",
        "if self.least_nodes * variance > SMOOTH**2 else 0.0",
        (PLANS + "test_too_little_noise_for_the_grid_is_none",),
    ),
    Mutant(
        34,
        "a sum's whole noise counts, and not what is left of it as a continuous Gaussian",
        GRIDS,
        "deviation = math.sqrt(self.least_nodes * variance - SMOOTH**2)",
        "deviation = math.sqrt(self.least_nodes * variance)",
        (PLANS + "test_the_event_is_the_gaussian_of_the_least_noise_over_the_rounded_sensitivity",),
    ),
    Mutant(
        31,
        "a second word is never drawn where the first leaves two values open",
        "fedpeft.secagg.discrete_gaussian",
        'absolute[place] = low + np.searchsorted(second[low:high], source(1)[0], side="right")',
        "absolute[place] = high",
        (SUMS + "test_where_one_word_leaves_two_values_open_a_second_decides",),
    ),
    Mutant(
        34,
        "values of a secure sum leave without their share of the noise",
        "fedpeft.secagg.grid_values",
        "grid.limit, source) + noise",
        "grid.limit, source) + 0 * noise",
        (
            "clients/test_privacy_bugs.py::test_as_few_shares_as_a_sum_may_hold_add_up_to_the_noise_that_is_accounted_for",
        ),
    ),
    Mutant(
        32,
        "nodes of other noise share masks",
        PLAN,
        'facts = json.dumps(["discrete gaussian", self.fields()], sort_keys=True)',
        'facts = json.dumps(["discrete gaussian"], sort_keys=True)',
        (PLANS + "test_what_integers_mean_is_bound_to_grid_and_noise",),
    ),
    Mutant(
        9,
        "delta is compared with one node's records where the sums are of all nodes'",
        "fedpeft.config.checks",
        "count = count and count * config.federation.nodes",
        "count = count and count * 1",
        (
            "fedpeft/test_config_privacy.py::"
            "test_a_delta_of_one_in_the_records_of_all_is_refused_where_they_share_a_sum",
        ),
    ),
    Mutant(
        3,
        "gradients are summed in float32 inside a batch",
        "fedpeft.training.dp.per_example",
        "+= factors @ finite.double()",
        "+= factors.float() @ finite",
        ("fedpeft/test_privacy_per_example.py::test_a_batch_is_summed_in_float64",),
    ),
    Mutant(
        11,
        "several local steps of a secure sum are accounted for as one release",
        PLAN,
        "single = self.steps_per_round == 1 or not distributed",
        "single = self.steps_per_round >= 1 or not distributed",
        (PLANS + "test_contradictory_plans_are_refused",),
    ),
    Mutant(
        33,
        "integers without room for the sign",
        PLANNING,
        "return math.floor((2 ** (bits - 1) - 1 - tail) / nodes)",
        "return math.floor((2**bits - 1 - tail) / nodes)",
        (PLANS + "test_no_sum_within_the_limit_leaves_its_integers",),
    ),
    Mutant(
        34,
        "the noise counts on the shares of colluders too",
        PLANNING,
        "return Grid(size, FINENESS[0] * math.sqrt(size), cohort.honest, cohort.colluders)",
        "return Grid(size, FINENESS[0] * math.sqrt(size), cohort.quorum, cohort.colluders)",
        (PLANS + "test_rounding_costs_little",),
    ),
    Mutant(
        35,
        "a run whose noise can be repeated claims the epsilon of its private twin",
        PLAN,
        "if self.reproducible:",
        "if self.reproducible and self.noise_multiplier == 0:",
        (PLANS + "test_a_reproducible_plan_has_the_noise_but_no_guarantee",),
    ),
    Mutant(
        35,
        "a noise multiplier of 0 makes a plan",
        PLAN,
        "_require(math.isfinite(value) and value > 0, name, self,",
        "_require(math.isfinite(value) and value >= 0, name, self,",
        (FIGURES + "test_nonsense_plans_are_refused[change0]",),
    ),
    Mutant(
        35,
        "without noise the accountant reports 0",
        ACCOUNTING,
        "if left <= 0 or not all(_noisy(event) for event in events):\n        return math.inf",
        "if left <= 0 or not all(_noisy(event) for event in events):\n        return 0.0",
        (CURVES + "test_no_noise_is_no_privacy[event0]",),
    ),
    Mutant(
        36,
        "what is no known event is left out of the sum",
        ACCOUNTING,
        "        _check(event)\n        merged[",
        "        if not isinstance(event, Steps | GridSteps | Pure):\n            continue\n        merged[",
        (CURVES + "test_what_is_no_release_is_refused",),
    ),
    Mutant(
        37,
        "the solver stops within a tolerance of the target, on either side",
        CALIBRATION,
        "noise = _round_up(_crossing(coarse, target))\n    while spent(noise, FINE) > target:",
        "noise = round(_crossing(coarse, target * 1.003), 3)\n    while spent(noise, FINE) > target * 1.01:",
        (FIGURES + "test_calibration_never_exceeds_the_target_and_wastes_little[1.0-0.08-100]",),
    ),
    Mutant(
        38,
        "the audit reports its point estimate as a bound",
        INTERVALS,
        "return epsilon_of(estimate - float(norm.ppf(confidence)) * error, delta)",
        "return epsilon_of(estimate, delta)",
        (BENCH + "test_bounds_above_the_claim_are_as_rare_as_they_say",),
    ),
    Mutant(
        38,
        "the best of many thresholds is reported with the confidence of one",
        AUDIT,
        "counted = counting_bound(members, others, threshold, DELTA, CONFIDENCE)",
        "cuts = np.linspace(0.5, 1 + 5 * multiplier, 200)\n"
        "    counted = max(counting_bound(members, others, float(cut), DELTA, CONFIDENCE) for cut in cuts)",
        ("fedpeft/test_privacy_bugs.py::test_an_audit_counts_at_one_threshold_that_no_draw_decides",),
    ),
)
