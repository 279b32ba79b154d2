"""Ten mutants of the kinds that a review found unwatched: clips in force, public seeds, coupling, NaN."""

from __future__ import annotations

from harness import Mutant

CENTRAL, GATES = "fedpeft.aggregation.central_dp", "fedpeft.training.dp.engine_selection"
SUM, PASSES, LOCAL = (
    "fedpeft.training.dp.per_example",
    "fedpeft.training.dp.backward_passes",
    "fedpeft.training.local",
)

NOISY, COUPLED = "fedpeft/test_privacy_central.py::", "fedpeft/test_privacy_coupling.py::"
IN_FORCE = NOISY + "test_noise_and_bound_follow_the_clip_in_force"
ONE_RECORD = COUPLED + "test_one_record_moves_the_sum_by_at_most_the_clip"
SEEDED = '__import__("fedpeft.privacy.csprng", fromlist=["x"]).seeded'

MUTANTS = (
    Mutant(
        24,
        "updates are bounded by the configured clip, not by the clip in force",
        CENTRAL,
        "total, count = clipped_sum(size, contributions, self.clip)",
        "total, count = clipped_sum(size, contributions, self.plan.clip)",
        (IN_FORCE,),
    ),
    Mutant(
        24,
        "a restored run falls back on the configured clip while its noise is accounted for the one in force",
        CENTRAL,
        'clip, done = float(arrays["clip"][0])',
        "clip, done = self.plan.clip",
        (IN_FORCE,),
    ),
    Mutant(
        16,
        "the coordinator's noise follows the run's public seed",
        CENTRAL,
        'source = randomness(self.plan, self.seed, self.done + 1, "noise")',
        f'source = {SEEDED}(bytes(24) + self.seed.to_bytes(8, "big"))',
        (NOISY + "test_only_a_plan_that_guarantees_nothing_follows_the_seed",),
    ),
    Mutant(
        16,
        "a node's noise and draws follow the stream of the run's seed",
        LOCAL,
        "if privacy.reproducible else words",
        "if rng else words",
        ("fedpeft/test_training.py::test_private_training_ignores_the_seed",),
    ),
    Mutant(
        19,
        "a base whose gradients are no numbers goes to the loop, where all of them count as zero",
        GATES,
        "if not bool(torch.isfinite(gradient).all()):",
        "if not bool(torch.isfinite(gradient).all()):\n            continue\n        if False:",
        (COUPLED + "test_a_base_that_is_not_finite_is_refused",),
    ),
    Mutant(
        22,
        "gates look at short records only",
        GATES,
        "while longest > PROBE_LENGTHS[0]:",
        "while longest > 1 << 30:",
        (ONE_RECORD,),
    ),
    Mutant(
        22,
        "a batch longer than the gates looked is computed at once",
        SUM,
        'alone = engine.name == "loop" or batch.ids.shape[1] > engine.longest',
        'alone = engine.name == "loop"',
        (COUPLED + "test_a_batch_longer_than_the_gates_looked_is_left_to_the_loop",),
    ),
    Mutant(
        22,
        "what one record's pass leaves behind meets the next record",
        PASSES,
        "/ len(batch)\n            _backward(weighted)\n            forget(attached.model)",
        "/ len(batch)\n            _backward(weighted)",
        (COUPLED + "test_what_a_pass_leaves_in_a_module_is_put_back",),
    ),
    Mutant(
        22,
        "sums in half precision hang on the shape of the batch",
        GATES,
        "if parameter.dtype in (torch.float16, torch.bfloat16):",
        "if parameter.dtype is torch.float64:",
        (COUPLED + "test_half_precision_is_left_to_the_loop",),
    ),
    Mutant(
        33,
        "a support has the size asked for only on average",
        "fedpeft.exchange.support",
        "bits < edge)",
        "bits < round(count / max(1, len(bits)) * 65536))",
        ("fedpeft/test_exchange_support.py::test_the_support_has_exactly_the_size_that_is_accounted_for",),
    ),
)
