"""Mutants of the private step: sampling, gradients, clip, noise and randomness."""

from __future__ import annotations

from harness import Mutant

CSPRNG, NOISE, SAMPLING = "fedpeft.privacy.csprng", "fedpeft.privacy.noise", "fedpeft.privacy.sampling"
STEP, ROWS, GATES = (
    "fedpeft.training.dp.dpsgd",
    "fedpeft.training.dp.per_example",
    "fedpeft.training.dp.engine_selection",
)
LOCAL, UNITS, LOSS = "fedpeft.training.local", "fedpeft.training.privacy_units", "fedpeft.training.loss"

UNCLIPPED = (
    "__import__('dataclasses').replace(mechanism, plan=plan.__class__(**{**vars(plan), 'clip': 1e30}))"
)
BUGS = "fedpeft/test_privacy_bugs.py::"
GRADIENTS = "fedpeft/test_privacy_per_example.py::"
METHODS = "fedpeft/test_privacy_per_example_methods.py::"
PERSONS = "fedpeft/test_privacy_per_example_units.py::"
RANDOM = "fedpeft/test_privacy_randomness.py::"
TRAINING = "fedpeft/test_training.py::"
TWIN = "fedpeft/test_training_private.py::test_a_seeded_round_equals_the_naive_twin[all-records-auto-lora]"

NOISE_LINE = "total += plan.deviation * _unit_noise(attached, mechanism, size)"
SUM_LINE = "total += _contribution(attached, batch, units, mechanism, size)\n"
SUMMED = "total = summed(attached, batches, mechanism)\n    size = total.size\n"
DRAWN = "drawn = poisson(len(units), plan.step_rate, source)"

MUTANTS = (
    Mutant(
        1,
        "noise sized for the mean is added to the sum, and divided by the batch size again",
        STEP,
        NOISE_LINE,
        NOISE_LINE + " / plan.expected_batch_size",
        (GRADIENTS + "test_an_empty_draw_is_noise_alone",),
    ),
    Mutant(
        2,
        "each tensor is clipped by itself",
        ROWS,
        "+= factors @ finite",
        "+= (self.clip.gradient / squared_rows(part).sqrt()).clamp(max=1.0).float() @ finite",
        (GRADIENTS + "test_clipped_sum_equals_the_naive_sum",),
    ),
    Mutant(
        2,
        "the sum of the batch is clipped, not each gradient",
        STEP,
        SUM_LINE,
        SUM_LINE.replace("mechanism", UNCLIPPED)
        + "        total *= min(1.0, mechanism.plan.clip / max(float(np.linalg.norm(total)), 1e-30))\n",
        (TWIN,),
    ),
    Mutant(
        5,
        "the divisor is the number of units that were drawn",
        LOCAL,
        "gradient = noisy_gradient(attached, batches, mechanism)",
        "gradient = noisy_gradient(attached, batches, mechanism)\n"
        "            gradient *= np.float32(mechanism.plan.expected_batch_size / max(len(drawn), 1))",
        (TWIN,),
    ),
    Mutant(
        5,
        "the rate is the batch size over the node's own number of records",
        UNITS,
        "poisson(len(units), plan.step_rate, source)",
        "poisson(len(units), plan.expected_batch_size / max(len(units), 1), source)",
        (TRAINING + "test_private_divisor_and_rate_do_not_follow_n",),
    ),
    Mutant(
        6,
        "a batch of fixed size is drawn and accounted for as a Poisson draw",
        SAMPLING,
        "return np.flatnonzero((source or words)(n) < threshold).astype(np.int64)",
        "return np.sort(np.argsort((source or words)(n))[: round(q * n)]).astype(np.int64)",
        (RANDOM + "test_the_batch_size_is_not_fixed_and_may_be_zero",),
    ),
    Mutant(
        6,
        "private steps go through a shuffled epoch",
        UNITS,
        DRAWN,
        "drawn = np.random.default_rng(0).permutation(len(units))[: plan.expected_batch_size]",
        (TWIN,),
    ),
    Mutant(
        7,
        "a draw that is larger than the batch size is cut off",
        UNITS,
        DRAWN,
        DRAWN + "[: plan.expected_batch_size]",
        (TWIN,),
    ),
    Mutant(
        7,
        "an empty draw is left out",
        LOCAL,
        "gradient = noisy_gradient(attached, batches, mechanism)",
        "gradient = noisy_gradient(attached, batches, mechanism) * np.float32(len(chosen) > 0)",
        (TRAINING + "test_no_examples_are_refused_without_privacy_only",),
    ),
    Mutant(
        7,
        "an empty draw is drawn again",
        SAMPLING,
        "return np.flatnonzero((source or words)(n) < threshold).astype(np.int64)",
        "while not (drawn := np.flatnonzero((source or words)(n) < threshold)).size and n:\n"
        "        pass\n"
        "    return drawn.astype(np.int64)",
        (RANDOM + "test_the_batch_size_is_not_fixed_and_may_be_zero",),
    ),
    Mutant(
        8,
        "some records are drawn more often than others, and accounted for at the mean rate",
        SAMPLING,
        "(source or words)(n) < threshold)",
        "(source or words)(n) < threshold * np.linspace(0.5, 1.5, n))",
        (RANDOM + "test_inclusion_is_independent_across_records_and_steps",),
    ),
    Mutant(
        16,
        "noise and sampling follow numpy's global seed",
        CSPRNG,
        "return keystream(os.urandom(KEY_BYTES), count)",
        "return keystream(np.random.bytes(KEY_BYTES), count)",
        (RANDOM + "test_seeds_have_no_influence",),
    ),
    Mutant(
        16,
        "the noise of every run comes from its configured seed",
        LOCAL,
        "source = seeded(rng.bytes(KEY_BYTES)) if privacy.reproducible else words",
        "source = seeded(rng.bytes(KEY_BYTES))",
        (TRAINING + "test_private_training_ignores_the_seed",),
    ),
    Mutant(
        17,
        "one key per process: each call repeats the same words",
        CSPRNG,
        "return keystream(os.urandom(KEY_BYTES), count)",
        'return keystream(globals().setdefault("_key", os.urandom(KEY_BYTES)), count)',
        (RANDOM + "test_blocks_do_not_repeat_or_correlate",),
    ),
    Mutant(
        17,
        "one stream per process, which a fork copies",
        CSPRNG,
        "return keystream(os.urandom(KEY_BYTES), count)",
        'return globals().setdefault("_stream", seeded(os.urandom(KEY_BYTES)))(count)',
        (BUGS + "test_a_fork_after_the_first_draw_shares_no_noise",),
    ),
    Mutant(
        18,
        "uniforms of 24 bits: the noise ends at 5.77 deviations",
        NOISE,
        "MANTISSA_BITS = 53",
        "MANTISSA_BITS = 24",
        (RANDOM + "test_the_tail_reaches_beyond_float32_generators",),
    ),
    Mutant(
        18,
        "the sum is rounded to float32 before the noise is added",
        STEP,
        "total = np.zeros(size, np.float64)",
        "total = np.zeros(size, np.float32)",
        (BUGS + "test_sum_and_noise_are_float64_until_the_one_cast_at_the_end",),
    ),
    Mutant(
        19,
        "gradients that are not finite pass the clip",
        ROWS,
        "return factors.masked_fill(lost, 0), lost if bool(lost.any()) else None",
        "return factors, None",
        (GRADIENTS + "test_a_non_finite_gradient_counts_as_zero[nan-lora-b]",),
    ),
    Mutant(
        20,
        "values without a gradient get no noise",
        STEP,
        NOISE_LINE,
        NOISE_LINE + " * (total != 0)",
        (GRADIENTS + "test_an_empty_draw_is_noise_alone",),
    ),
    Mutant(
        20,
        "noise is drawn with each physical batch, and none where there is no batch",
        STEP,
        SUMMED + "    if plan.grid is None:\n        " + NOISE_LINE,
        "size = len(summed(attached, [], mechanism))\n    total = np.zeros(size)\n"
        "    for batch in batches:\n        total += summed(attached, [batch], mechanism)\n        "
        + NOISE_LINE
        + "\n    if plan.grid is None:\n        pass",
        (BUGS + "test_a_step_draws_its_noise_once_however_many_physical_batches_it_has[2]",),
    ),
    Mutant(
        21,
        "a parameter is trained that no clip covers",
        ROWS,
        "    _refuse_strays(attached)\n",
        "",
        (GRADIENTS + "test_a_stray_trainable_is_refused",),
    ),
    Mutant(
        21,
        "the norm leaves out values that are trained",
        ROWS,
        "squares += squared_rows(part)",
        "squares += squared_rows(part[:, ::2].contiguous())",
        (GRADIENTS + "test_one_record_moves_the_sum_by_at_most_the_clip[0.1-lora-b]",),
    ),
    Mutant(
        22,
        "the loss divides by the tokens of the whole batch",
        LOSS,
        "return total / batch.weights[:, 1:].sum(1).clamp(",
        "return total / batch.weights[:, 1:].sum().clamp(",
        (GRADIENTS + "test_loss_of_a_batch_is_the_sum_of_single_losses",),
    ),
    Mutant(
        22,
        "batch normalisation goes unnoticed",
        GATES,
        "if isinstance(module, nn.modules.batchnorm._BatchNorm):",
        "if isinstance(module, nn.modules.batchnorm._LazyNormBase):",
        (METHODS + "test_batch_normalisation_is_left_to_the_loop",),
    ),
    Mutant(
        22,
        "experts share the batch's tokens and go unnoticed",
        GATES,
        "if any((getattr(text, name, None) or 0) > 1 for name in EXPERTS):",
        "if any((getattr(text, name, None) or 0) > 1024 for name in EXPERTS):",
        (METHODS + "test_experts_are_left_to_the_loop",),
    ),
    Mutant(
        23,
        "all records of a person are used, however many they are",
        UNITS,
        "if len(unit) <= most:",
        "if unit:",
        (PERSONS + "test_a_draw_of_persons_holds_at_most_the_cap_of_one_and_never_two_together",),
    ),
    Mutant(
        23,
        "records are clipped where the unit is a person",
        ROWS,
        "bounds = bounds_of(units, len(batch))",
        "bounds = bounds_of(None, len(batch))",
        (PERSONS + "test_a_persons_records_are_added_before_the_clip",),
    ),
    Mutant(
        23,
        "records are drawn where the unit is a person",
        UNITS,
        'if plan.unit == "record":',
        'if plan.unit in ("record", "person"):',
        (PERSONS + "test_a_draw_of_persons_holds_at_most_the_cap_of_one_and_never_two_together",),
    ),
    Mutant(
        27,
        "noise is added to the largest values alone: where it lies tells of the data",
        STEP,
        NOISE_LINE,
        NOISE_LINE + " * (np.abs(total) >= np.quantile(np.abs(total), 0.9))",
        (GRADIENTS + "test_noisy_gradient_is_sum_plus_noise_over_the_public_divisor",),
    ),
    Mutant(
        28,
        "a private round reports which records it has seen",
        LOCAL,
        "return TrainResult(plan.steps, loss_released=released)\n",
        "return TrainResult(plan.steps, seen=tuple(range(len(chosen))), loss_released=released)\n",
        (TWIN,),
    ),
    Mutant(
        28,
        "training ends early when the data say so",
        LOCAL,
        "gradient = noisy_gradient(attached, batches, mechanism)",
        "gradient = noisy_gradient(attached, batches, mechanism)\n"
        "            if len(drawn) <= 6:\n"
        "                break",
        (TWIN,),
    ),
)
