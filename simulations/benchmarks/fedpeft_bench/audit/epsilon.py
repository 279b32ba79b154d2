"""``fedpeft bench audit epsilon``: what audits show of right runs, and which fault each one catches.

Right runs and broken ones go through the platform's own code (`fedpeft_attacks.dp_audit.canary_rehearsal`);
no data are read. Four tables:

* one Gaussian release: bounds of four estimators beside the claim, for 300, 1,000 and 5,000 canaries;
* runs of the embedded private plan's shape, noise for epsilon 1, 4 and 8: bounds, and how often they lie;
* the same with privacy broken on purpose: how often each audit notices;
* one run under each of the other trust models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import AdaptiveClip, PrivacyPlan
from fedpeft.rng import stream
from fedpeft_attacks.dp_audit import Effort, EpsilonCheck, epsilon_checks, tap_checks
from fedpeft_attacks.dp_audit.canary_rehearsal import Observed, coins, likelihood, rehearse
from fedpeft_attacks.dp_audit.check import CURVE, ONE_RUN, STEINKE
from fedpeft_attacks.dp_audit.gaussian import separation
from fedpeft_attacks.dp_audit.intervals import best_threshold, counting_bound, gaussian_bound
from fedpeft_attacks.dp_audit.one_run import guess
from fedpeft_attacks.dp_audit.power import best_share, guesses_of
from fedpeft_bench.audit.epsilon_faults import FAULTS
from fedpeft_bench.harness.command import machine

Row = dict[str, Any]
Report = Callable[[str], None]

RIGHT, BROKEN, COORDINATES = 200, 20, 100_000
CANARIES = (300, 1000, 5000)
EPSILONS = (1.0, 4.0, 8.0)
COUNTING, GAUSSIAN = "counting (Clopper-Pearson)", "Gaussian scores"

RELEASE = PrivacyPlan(1.0, 1.0, 0.25, 64, 1, 1, 1e-5)
EMBEDDED = PrivacyPlan(0.2, 1.0, 0.25, 64, 3, 8, 1e-5)
"""The shape of the embedded scenario's private baseline."""

OTHERS = {
    "person, 3 records": replace(EMBEDDED, noise_multiplier=1.42, unit="person", records_per_unit=3),
    "central, drawn": PrivacyPlan(0.5, 3.0, 1.0, 10, 1, 20, 1e-5, "node", "central"),
    "central, in turns": PrivacyPlan(
        1.0, 2.0, 1.0, 10, 1, 20, 1e-5, "node", "central", separation=5, bands=3
    ),
    "central, adaptive clip": PrivacyPlan(
        1.0, 6.0, 1.0, 10, 1, 20, 1e-5, "node", "central", adaptive=AdaptiveClip(0.5, 0.2, 12.0)
    ),
    "distributed": PrivacyPlan(
        1.0, 6.0, 1.0, 10, 1, 8, 1e-5, "node", "distributed", grid=Grid(1000, 500.0, 3)
    ),
}


def run(seeds: Sequence[int], report: Report) -> dict[str, Any]:
    """All four tables; the seeds decide the coins, and right runs are divided among them."""
    report("one Gaussian release")
    releases = [row for epsilon in (1.0, 2.0, 4.0, 8.0) for row in release_rows(epsilon, seeds, RIGHT)]
    rows: dict[str, list[Row]] = {"right": [], "broken": []}
    for epsilon in EPSILONS:
        report(f"runs at epsilon {epsilon:g}")
        rows["right"] += right_rows(epsilon, seeds, RIGHT)
        rows["broken"] += broken_rows(epsilon, seeds, BROKEN)
    return {"machine": machine(), "releases": releases, **rows, "others": other_rows()}


def release_rows(epsilon: float, seeds: Sequence[int], runs: int) -> list[Row]:
    """Bounds of one Gaussian release, per number of canaries and estimator.

    300 are the first of 1,000; with 5,000, which take long, there are a quarter of the runs.
    """
    plan = RELEASE.with_noise(1 / separation(epsilon, RELEASE.delta))
    bounds: dict[tuple[int, str], list[float]] = defaultdict(list)
    for number, rng in enumerate(_streams(seeds, runs + runs // 4)):
        counts = CANARIES[:2] if number < runs else CANARIES[2:]
        whole = rehearse(plan, coins(max(counts), rng))
        for count in counts:
            part = Observed(plan, whole.values[:, :count], whole.members[:count])
            for method, bound in _bounds(part):
                bounds[count, method].append(bound)
    return [
        {"canaries": count, "method": method, **_summary(epsilon, values)}
        for (count, method), values in bounds.items()
    ]


def _bounds(observed: Observed) -> Iterator[tuple[str, float]]:
    plan, members, count = observed.plan, observed.members, len(observed.members)
    for estimator in ONE_RUN:
        made = guesses_of(count, best_share(plan, likelihood, count, estimator.bound))
        yield estimator.method, estimator.bound(guess(likelihood(observed), members, made), plan.delta)
    inside, outside = observed.values[0, members], observed.values[0, ~members]
    threshold = best_threshold(plan.noise_multiplier, count // 2, plan.delta)
    yield COUNTING, counting_bound(inside, outside, threshold, plan.delta)
    yield GAUSSIAN, gaussian_bound(inside, outside, plan.delta)


def _summary(epsilon: float, bounds: Sequence[float]) -> Row:
    return {
        "epsilon": epsilon,
        "median": float(np.median(bounds)),
        "share": float(np.median(bounds)) / epsilon,
        "above": sum(bound > epsilon for bound in bounds),
        "runs": len(bounds),
    }


def _streams(seeds: Sequence[int], runs: int) -> Iterator[np.random.Generator]:
    for number in range(runs):
        yield stream(seeds[number % len(seeds)], number, "", "bench epsilon")


def planned(epsilon: float) -> PrivacyPlan:
    """The embedded plan's shape with the noise for this epsilon."""
    return EMBEDDED.with_noise(noise_multiplier(EMBEDDED, epsilon))


def right_rows(epsilon: float, seeds: Sequence[int], runs: int) -> list[Row]:
    """Every audit on right runs: bounds, how many lie above the claim, and how many contradict it."""
    plan, checks_of = planned(epsilon), defaultdict[str, list[EpsilonCheck]](list)
    for number in range(runs):
        for check in audited(plan, seeds[number % len(seeds)] * runs + number):
            checks_of[check.method].append(check)
    return [{"method": method, **_right(plan, checks)} for method, checks in checks_of.items()]


def _right(plan: PrivacyPlan, checks: Sequence[EpsilonCheck]) -> Row:
    claimed, bounds = plan.epsilon(), [check.bound for check in checks if check.bound is not None]
    facts = _summary(claimed, bounds) if bounds else {"epsilon": claimed, "runs": len(checks)}
    return {**facts, "alarms": _alarms(checks), "power": checks[0].power, "fault": checks[0].fault}


def _alarms(checks: Sequence[EpsilonCheck]) -> int:
    return sum(check.verdict == "contradicts the claim" for check in checks)


def audited(plan: PrivacyPlan, seed: int, planted: Callable[[], Any] = nullcontext) -> list[EpsilonCheck]:
    """All audits of one rehearsed run, of which two nodes' first gradients are tapped as well.

    Args:
        plan: the claim.
        seed: of the coins.
        planted: a fault; entered anew for each node.
    """
    with planted():
        checks = epsilon_checks(plan, Effort(coordinates=COORDINATES, seed=seed))
    first, tapped = replace(plan, steps_per_round=1, rounds=1), dict[str, Any]()
    for node in ("bank", "clinic"):
        with planted():
            values = rehearse(first, coins(1000, stream(seed, 0, node, "bench epsilon"))).values[0]
        tapped[node] = (values * plan.clip / plan.expected_batch_size).astype(np.float32)
    return checks + tap_checks(tapped, plan)


def broken_rows(epsilon: float, seeds: Sequence[int], runs: int) -> list[Row]:
    """How often each audit contradicts the claim under each fault."""
    plan, rows = planned(epsilon), list[Row]()
    for fault in FAULTS:
        checks_of = defaultdict[str, list[EpsilonCheck]](list)
        for number in range(runs):
            for check in audited(plan, seeds[number % len(seeds)] * runs + number, fault.planted):
                checks_of[check.method].append(check)
        caught = {method: _alarms(checks) for method, checks in checks_of.items()}
        facts = {"bugs": fault.bugs, "test": fault.test}
        rows.append({"epsilon": epsilon, "fault": fault.name, "runs": runs, "caught": caught, **facts})
    return rows


def other_rows() -> list[Row]:
    """One run under each of the other trust models, with all of its audits."""
    return [
        {"plan": name, **asdict(check)} for name, plan in OTHERS.items() for check in epsilon_checks(plan)
    ]


def show(facts: dict[str, Any]) -> None:
    """Print the tables."""
    from fedpeft.cli.output import table

    where = facts["machine"]
    columns = ("method", "canaries", *(f"epsilon {epsilon:g}" for epsilon in (1, 2, 4, 8)))
    table(
        f"one Gaussian release: median bound, share, bounds above the claim ({where})",
        columns,
        _releases(facts),
    )
    columns = ("epsilon", "method", "median bound", "share", "above the claim", "contradicts", "known power")
    table(f"right runs of the embedded plan ({where})", columns, map(_right_cells, facts["right"]))
    methods = list(dict.fromkeys(method for row in facts["broken"] for method in row["caught"]))
    table(
        f"broken runs: caught by ({where})",
        ("fault", "epsilon", *methods, "bugs"),
        map(_broken_cells, facts["broken"]),
    )
    columns = ("plan", "method", "claimed", "bound", "verdict", "known power")
    table(f"other trust models, one run each ({where})", columns, map(_other_cells, facts["others"]))


def _releases(facts: dict[str, Any]) -> Iterator[list[str]]:
    rows = {(row["method"], row["canaries"], row["epsilon"]): row for row in facts["releases"]}
    for method in (STEINKE, CURVE, COUNTING, GAUSSIAN):
        for count in CANARIES:
            cells = [rows[method, count, epsilon] for epsilon in (1.0, 2.0, 4.0, 8.0)]
            shown = [
                f"{row['median']:.2f}, {row['share']:.0%}, {row['above']}/{row['runs']}" for row in cells
            ]
            yield [method, str(count), *shown]


def _right_cells(row: Row) -> list[str]:
    shown, power = ["", "", ""], "" if row["power"] is None else f"{row['power']:.0%} ({row['fault']})"
    if "median" in row:
        shown = [f"{row['median']:.2f}", f"{row['share']:.0%}", f"{row['above']}/{row['runs']}"]
    return [f"{row['epsilon']:.2f}", row["method"], *shown, f"{row['alarms']}/{row['runs']}", power]


def _broken_cells(row: Row) -> list[str]:
    shares = [f"{caught}/{row['runs']}" for caught in row["caught"].values()]
    return [row["fault"], f"{row['epsilon']:g}", *shares, row["bugs"]]


def _other_cells(row: Row) -> list[str]:
    bound = "" if row["bound"] is None else f"{row['bound']:.2f}"
    return [row["plan"], row["method"], f"{row['claimed']:.2f}", bound, row["verdict"], f"{row['power']:.0%}"]
