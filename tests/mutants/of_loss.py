"""Mutants of the released training loss (its noise, cap and sensitivity) and of the private search."""

from __future__ import annotations

from harness import Mutant

STEP, ROWS, PLAN = (
    "fedpeft.training.dp.dpsgd",
    "fedpeft.training.dp.per_example",
    "fedpeft.privacy.plan",
)
LOSS = "fedpeft/test_privacy_loss.py::"
TUNING = "fedpeft_simulations.private_tuning"
JOINT = "simulations/test_private_tuning.py::test_trials_and_run_together_spend_no_more_than_epsilon"
NOISE_LINE = "total += plan.deviation * _unit_noise(attached, mechanism, size)"
ENDS = LOSS + "test_a_loss_above_the_cap_or_not_finite_counts_as_the_cap_and_one_below_zero_as_zero"

MUTANTS = (
    Mutant(
        28,
        "the released loss bears no noise",
        STEP,
        NOISE_LINE,
        "total[: size - (plan.loss is not None)] += "
        "plan.deviation * noise.gaussian(size - (plan.loss is not None), mechanism.source)",
        (LOSS + "test_what_is_released_is_right_on_average_with_the_stated_error",),
    ),
    Mutant(28, "a record's released loss is not capped", ROWS, ".clamp(0, cap)", "", (ENDS,)),
    Mutant(
        28,
        "a loss that is not a number makes the whole release one",
        ROWS,
        "torch.where(torch.isfinite(losses), losses.double(), cap)",
        "losses.double()",
        (ENDS,),
    ),
    Mutant(
        28,
        "the sensitivity is that of the gradient alone",
        PLAN,
        "return self.clip * (1.0 if self.loss is None else self.loss.growth)",
        "return self.clip",
        (LOSS + "test_epsilon_is_that_of_the_joint_vector",),
    ),
    Mutant(
        28,
        "a tracker of a private run gets losses without noise",
        "fedpeft.tracking.event_figures",
        'and (not private or "standard_error" in event)',
        "",
        ("fedpeft/test_tracking.py::test_under_privacy_only_what_the_released_adapter_says_is_sent",),
    ),
    Mutant(
        11,
        "the trials of a search are free",
        TUNING,
        "noise = solve([plan.with_noise(trial_noise) for plan in plans], [_plan(config)], total)",
        "noise = solve([], [_plan(config)], total)",
        (JOINT,),
    ),
    Mutant(
        12,
        "each trial of a search begins with an empty ledger",
        TUNING,
        "old.backup(new)",
        "pass",
        (JOINT,),
    ),
)
