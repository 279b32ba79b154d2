"""Mutants of the coordinator's noise, of secure sums and of what is exchanged."""

from __future__ import annotations

from harness import Mutant

CENTRAL, ROSTER, CHANNEL = (
    "fedpeft.aggregation.central_dp",
    "fedpeft_server.rounds.roster",
    "fedpeft_server.rounds.update_channel",
)
EXCHANGE, SUMMANDS = "fedpeft.exchange.plan", "fedpeft_clients.rounds.secure_payload"
NODE, TERMS, MASKS = "fedpeft.secagg.node", "fedpeft.secagg.context", "fedpeft.secagg.masks"

NOISY = "fedpeft/test_privacy_central.py::"
SERVER = "server/test_central.py::"
CLIENT = "clients/test_privacy_bugs.py::"
PARTS, HOSTILE = "fedpeft/secagg/test_parts.py::", "fedpeft/secagg/test_hostile.py::"
PLANS = "fedpeft/test_exchange_plan.py::"
ONE_NODE = NOISY + "test_one_node_moves_the_sum_by_at_most_the_clip_and_the_count_by_half"

CLIPPED = "total += vector * (bound / max(norm, bound))"
SUMMED = "total, count = clipped_sum(size, contributions, self.clip)\n"
MEAN = "mean = (total + scale * row) / self.plan.expected_batch_size"
OPENED = (
    "total, _ = opened.result(bound=most if fits else None)\n"
    "        values = from_grid(total, plan.clip, grid.steps_per_clip) / plan.expected_batch_size"
)
NEXT_CLIP = "return self.clip * math.exp(-adaptive.lr * (share - adaptive.quantile))"

MUTANTS = (
    Mutant(
        1,
        "the coordinator divides its noise twice",
        CENTRAL,
        MEAN,
        "mean = (total + scale * row / self.plan.expected_batch_size) / self.plan.expected_batch_size",
        (NOISY + "test_the_noise_has_the_declared_size_also_without_any_reply",),
    ),
    Mutant(
        2,
        "the coordinator trusts that nodes have clipped",
        CENTRAL,
        CLIPPED,
        "total += vector",
        (ONE_NODE + "[1.0-1-large]",),
    ),
    Mutant(
        3,
        "updates are weighted by what nodes say, the noise is not",
        CENTRAL,
        CLIPPED,
        CLIPPED.replace("vector", "_ * vector"),
        (ONE_NODE + "[1000000000.0-1-large]",),
    ),
    Mutant(
        4,
        "the sum is divided by the replies, the noise by the number that was expected",
        CENTRAL,
        SUMMED,
        "given = list(contributions)\n"
        "        total, count = clipped_sum(size, given, self.clip)\n"
        "        total *= self.plan.expected_batch_size / max(1, len(given))\n",
        (NOISY + "test_before_its_noise_a_release_moves_by_at_most_the_clip_over_the_public_divisor[3]",),
    ),
    Mutant(
        4,
        "a secure sum is divided by the nodes in it, its noise was sized for another number",
        "fedpeft_server.rounds.secure_aggregation",
        OPENED,
        OPENED.replace("total, _ =", "total, nodes =").replace("plan.expected_batch_size", "nodes"),
        ("server/test_privacy_bugs.py::test_fewer_nodes_in_a_noisy_sum_do_not_change_its_divisor",),
    ),
    Mutant(
        6,
        "a draw of fixed size is accounted for as secret coins",
        ROSTER,
        "drawn = poisson(len(enrolled), federation.participation, source)",
        "drawn = np.argsort(source(len(enrolled)))[: int(federation.participation * len(enrolled) + 0.5)]",
        ("server/test_roster.py::test_secret_coins_fall_for_each_node_alone_and_follow_no_seed",),
    ),
    Mutant(
        6,
        "a node charges itself the amplified price of a draw that it knows of",
        "fedpeft_clients.rounds.local_round",
        "privacy = replace(privacy, sampling_probability=1.0, separation=1, bands=1)",
        "privacy = replace(privacy, separation=1, bands=1)",
        (CLIENT + "test_a_node_that_was_asked_gets_no_amplification_in_its_own_ledger",),
    ),
    Mutant(
        7,
        "a round of which nobody was drawn is left out",
        CHANNEL,
        "        after, measured = state.absorb(inbox.round, contributions)\n",
        "        if not inbox.accepted:\n            return state, {}\n"
        "        after, measured = state.absorb(inbox.round, contributions)\n",
        (SERVER + "test_a_draw_of_nobody_is_a_round_of_noise",),
    ),
    Mutant(
        16,
        "the coordinator's noise follows the run's seed",
        CENTRAL,
        "if not plan.reproducible:\n        return words",
        "if plan.trust != 'central':\n        return words",
        (NOISY + "test_two_releases_and_two_runs_share_no_noise",),
    ),
    Mutant(
        16,
        "a node's share of noise follows the run's seed",
        SUMMANDS,
        "if not privacy.reproducible:\n        return words",
        "if privacy.grid is None:\n        return words",
        (CLIENT + "test_shares_of_noise_follow_no_seed",),
    ),
    Mutant(
        19,
        "an update that is not finite passes the coordinator's clip",
        CENTRAL,
        "if math.isfinite(norm):",
        "if norm is not None:",
        (ONE_NODE + "[1.0-1-nan]",),
    ),
    Mutant(
        19,
        "an update of zeros divides by zero",
        CENTRAL,
        "(bound / max(norm, bound))",
        "min(1.0, bound / norm)",
        (ONE_NODE + "[1.0-1-zero]",),
    ),
    Mutant(
        24,
        "the adaptive clip moves the wrong way",
        CENTRAL,
        NEXT_CLIP,
        NEXT_CLIP.replace("-adaptive.lr", "adaptive.lr"),
        (NOISY + "test_an_adaptive_clip_finds_its_quantile_from_below_and_from_above[0.5-0.1]",),
    ),
    Mutant(
        24,
        "the adaptive clip follows the count without noise",
        CENTRAL,
        "noisy = count + adaptive.count_noise * float(noise.gaussian(1, source)[0])",
        "noisy = count",
        (NOISY + "test_the_next_clip_is_what_the_noisy_count_says_and_nothing_else",),
    ),
    Mutant(
        24,
        "the count of an adaptive clip is free",
        CENTRAL,
        "rest = plan.noise_multiplier**-2 - (2 * plan.adaptive.count_noise) ** -2",
        "rest = plan.noise_multiplier**-2",
        (NOISY + "test_sum_and_count_together_cost_what_one_plain_release_costs",),
    ),
    Mutant(
        25,
        "a private plan may end with a codec that makes updates longer",
        EXCHANGE,
        "            _check_private(self.transforms)\n",
        "            self.describe()\n",
        (PLANS + "test_a_private_plan_refuses_stochastic_ternary",),
    ),
    Mutant(
        25,
        "nodes round to the grid without the clip",
        "fedpeft.secagg.skellam",
        "scaled = exact * (steps_per_clip / max(norm, clip) * (1 - 2.0**-40))",
        "scaled = exact * (steps_per_clip / clip)",
        (CLIENT + "test_what_a_node_adds_to_a_noisy_sum_is_within_the_sensitivity_that_is_accounted_for",),
    ),
    Mutant(
        26,
        "a residual of rounds without noise is sent in a private round",
        EXCHANGE,
        "if self.private and RESIDUAL in state and PRIVATE not in state:",
        "if self.private and RESIDUAL in state and not state:",
        (PLANS + "test_a_private_plan_refuses_the_residual_of_rounds_without_privacy",),
    ),
    Mutant(
        26,
        "a residual carries a node's data past its clip",
        "fedpeft.config.checks",
        "    if config.exchange.up.error_feedback:\n",
        "    if config.exchange.up.error_feedback and privacy.adaptive_clip:\n",
        ("fedpeft/test_privacy_bugs.py::test_a_residual_never_goes_with_the_privacy_of_whole_nodes",),
    ),
    Mutant(
        28,
        "events tell of updates that the coordinator's noise is to hide",
        CHANNEL,
        "public = {key: value for key, value in event.items() if key not in MEASURED}",
        "public = dict(event)",
        (SERVER + "test_each_round_is_reserved_before_anybody_is_asked_and_told_without_figures_of_updates",),
    ),
    Mutant(
        29,
        "validation is drawn from the training records",
        "fedpeft_simulations.embedded.organisations",
        'fake = source(seed, house.name, f"embedded-{split}")',
        'fake = source(seed, house.name, "embedded-train")',
        ("simulations/test_embedded_data.py::test_splits_and_global_test_share_no_person",),
    ),
    Mutant(
        29,
        "parts of a data set overlap",
        "fedpeft.data.records",
        "for index in order[start:end] for record in groups[index]",
        "for index in order[:end] for record in groups[index]",
        ("fedpeft/test_data_partition.py::test_split_is_a_partition_of_the_whole",),
    ),
    Mutant(
        29,
        "the shared tokenizer is fitted on text of private persons",
        "fedpeft_simulations.embedded.corpus",
        'person = make_person(fake, "public").fields',
        'person = make_person(fake, "private").fields',
        ("fedpeft/test_privacy_bugs.py::test_the_text_of_the_shared_tokenizer_names_no_private_person",),
    ),
    Mutant(
        30,
        "masks come from 32 bits of their key",
        MASKS,
        "cipher = Cipher(algorithms.AES256(key),",
        "cipher = Cipher(algorithms.AES256(key[:4] * 8),",
        (PARTS + "test_the_stream_is_aes_256_ctr",),
    ),
    Mutant(
        30,
        "all rounds share their masks",
        MASKS,
        "encoded(purpose.encode(), context.digest, *(",
        "encoded(purpose.encode(), context.run, *(",
        (PARTS + "test_no_two_rounds_or_pairs_share_a_stream",),
    ),
    Mutant(
        30,
        "secrets of 28 bits",
        "fedpeft.secagg.shamir",
        "return secrets.randbelow(PRIME).to_bytes(",
        "return secrets.randbelow(2**28).to_bytes(",
        ("fedpeft/test_privacy_bugs.py::test_fresh_secrets_fill_the_field",),
    ),
    Mutant(
        31,
        "a node lets both shares of another go",
        NODE,
        "pair[:SECRET_BYTES] if name in survivors else pair[SECRET_BYTES:]",
        "pair if name in survivors else pair[SECRET_BYTES:]",
        (HOSTILE + "test_no_reveal_holds_both_shares",),
    ),
    Mutant(
        31,
        "a node signs two sets of survivors",
        NODE,
        '    member.store.once(context, "agreed", encoded(participants, encoded_names(survivors)))\n',
        "",
        (HOSTILE + "test_two_sets_of_survivors_are_refused",),
    ),
    Mutant(
        31,
        "a node reveals shares for two sets of survivors",
        NODE,
        '    member.store.once(context, "revealed", message)\n',
        "",
        (HOSTILE + "test_nobody_reveals_both_shares_of_a_node",),
    ),
    Mutant(
        31,
        "a node opens two attempts of one round",
        "fedpeft.secagg.release_store",
        'attempt = "" if step in OF_ROUND else f"-{context.attempt}"',
        'attempt = f"-{context.attempt}"',
        (HOSTILE + "test_a_round_is_opened_in_one_attempt_only",),
    ),
    Mutant(
        15,
        "one update is masked for two rosters of an attempt",
        NODE,
        '    member.store.once(context, "masked", receipt)\n',
        "",
        (HOSTILE + "test_a_vector_is_masked_once",),
    ),
    Mutant(
        32,
        "keys are taken without their node's signature",
        "fedpeft.secagg.messages",
        '    check(signature, "advertisement", context, name, content)\n',
        "",
        (HOSTILE + "test_swapped_keys_are_refused",),
    ),
    Mutant(
        32,
        "a coordinator may change a node's key between rounds",
        "fedpeft.secagg.terms",
        "        if pinned.get(name) != key:\n",
        "        if name not in pinned:\n",
        (CLIENT + "test_keys_that_are_not_pinned_reach_nobody",),
    ),
    Mutant(
        15,
        "a coordinator may leave nodes out of the roster",
        "fedpeft.secagg.terms",
        "if missing := sorted(set(pinned) - set(roster)):",
        "if not set(pinned) & set(roster) and (missing := sorted(pinned)):",
        (HOSTILE + "test_every_roster_but_the_pinned_one_is_refused",),
    ),
    Mutant(
        15,
        "a round's second attempt may have other terms",
        "fedpeft.secagg.terms",
        '    member.store.once(replace(context, attempt=0), "accepted", b"")\n',
        "",
        (HOSTILE + "test_a_round_has_one_set_of_terms",),
    ),
    Mutant(
        15,
        "a threshold that opens two sums of a round once nodes collude",
        "fedpeft.cohort",
        "2 * self.threshold <= self.nodes + self.colluders:",
        "2 * self.threshold <= self.nodes:",
        (PARTS + "test_a_threshold_that_could_open_two_sums_of_a_round_is_never_allowed",),
    ),
    Mutant(
        34,
        "colluders count among the nodes that a sum must hold",
        "fedpeft.cohort",
        "return max(self.threshold, self.least_nodes + self.colluders)",
        "return max(self.threshold, self.least_nodes)",
        (HOSTILE + "test_the_least_number_of_nodes_counts_beside_the_threshold",),
    ),
    Mutant(
        32,
        "the coordinator chooses any threshold",
        "fedpeft.secagg.terms",
        "    if context.cohort != member.cohort:\n",
        "    if context.cohort.nodes != member.cohort.nodes:\n",
        (HOSTILE + "test_terms_other_than_the_agreed_are_refused",),
    ),
    Mutant(
        32,
        "a few survivors are enough",
        TERMS,
        "if count < self.quorum:",
        "if count < 2:",
        (HOSTILE + "test_a_small_cohort_is_refused_at_each_step",),
    ),
    Mutant(
        32,
        "the digest of the terms leaves the model out: nodes that were sent different ones share masks",
        TERMS,
        "self.to_bytes()).digest()",
        "self.to_bytes().partition(b',\"state\"')[0]).digest()",
        (HOSTILE + "test_nodes_that_start_from_different_models_share_nothing",),
    ),
    Mutant(
        33,
        "the range of integers ends one too late",
        "fedpeft.secagg.integers",
        "if bound <= 2 ** (bits - 1) - 1:",
        "if bound <= 2 ** (bits - 1):",
        (PARTS + "test_the_least_width_is_chosen",),
    ),
    Mutant(
        33,
        "a value beyond its bound is masked all the same",
        "fedpeft.secagg.integers",
        "if bound is not None and values.size and (values.max() > bound or values.min() < -bound):",
        "if bound is not None and values.size and values.min() < -bound:",
        (PARTS + "test_values_beyond_their_bound_are_refused",),
    ),
    Mutant(
        34,
        "shares of noise are sized for all nodes that were expected",
        SUMMANDS,
        "** 2 / grid.least_nodes\n",
        "** 2 / privacy.expected_batch_size\n",
        (CLIENT + "test_as_few_shares_as_a_sum_may_hold_add_up_to_the_noise_that_is_accounted_for",),
    ),
)
