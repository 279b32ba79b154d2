"""``fedpeft bench privacy``: accountants, noise and an audit of the mechanism, beside others' figures."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedpeft.privacy import noise
from fedpeft.privacy.accounting import FINE, Steps, epsilon
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.privacy.plan_builder import OWN_FINENESS, OWN_LIMIT
from fedpeft.secagg.grid_values import from_grid, noisy_grid
from fedpeft_attacks.dp_audit.mechanism import audit
from fedpeft_bench.harness.command import machine
from fedpeft_bench.harness.timing import best

VALUES = 1_000_000
STEP_SIZES = (22_528, 1_000_000)
"""Values of a step whose noise is timed whole: a thin adapter's, and the million."""


class Setting(NamedTuple):
    """One run of Poisson-sampled Gaussian steps."""

    rate: float
    noise: float
    steps: int
    delta: float = 1e-5


SETTINGS = (
    Setting(0.01, 1.0, 1000),
    Setting(0.01, 0.6, 1000),
    Setting(0.032, 1.0, 940),
    Setting(0.032, 0.8, 940),
    Setting(0.032, 2.0, 940),
    Setting(0.128, 1.0, 235),
    Setting(0.16, 1.5, 188, 1e-3),
    Setting(1.0, 10.0, 30),
    Setting(0.01, 0.7, 1000),
    Setting(0.1, 1.0, 100),
    Setting(0.1, 2.0, 1000),
    Setting(0.5, 4.0, 30),
)
"""From 1 % to full participation, epsilon from 2 to 14."""

OPTIMISTIC = 2e-5
"""Discretisation of the lower bound: as fine as some seconds allow."""

ACCOUNTANTS = ("q, z, steps, delta", "fedpeft", "lower bound", "Opacus PRV", "Opacus RDP", "Google RDP")
NOISE = ("standard normal values", "ms CPU per million", "support")
STEP_NOISE = ("values", "gaussian, ms CPU a step", "discrete", "ratio", "more noise")
AUDIT = ("claimed epsilon", "Gaussian bound", "share", "counting bound", "share", "bounds above the claim")


def accountants(settings: Sequence[Setting] = SETTINGS, interval: float = OPTIMISTIC) -> list[dict[str, Any]]:
    """Epsilon of each setting by each accountant; ``lower_bound`` is a PLD rounded down, below the truth."""
    return [
        {
            **setting._asdict(),
            "fedpeft": epsilon([Steps(*setting[:3])], setting.delta, FINE),
            "lower_bound": lower_bound(setting, interval),
            **_others(setting),
        }
        for setting in settings
    ]


def lower_bound(setting: Setting, interval: float = OPTIMISTIC) -> float:
    """Epsilon by a PLD whose losses are rounded down: no right accountant can give less."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    optimistic = from_gaussian_mechanism(
        setting.noise,
        sampling_prob=setting.rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=interval,
    )
    return float(optimistic.self_compose(setting.steps).get_epsilon_for_delta(setting.delta))


def _others(setting: Setting) -> dict[str, float]:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = PoissonSampledDpEvent(setting.rate, GaussianDpEvent(setting.noise))
    with _quiet():
        from opacus.accountants import PRVAccountant, RDPAccountant

        epsilons: dict[str, float] = {}
        for name, accountant in (("opacus_prv", PRVAccountant()), ("opacus_rdp", RDPAccountant())):
            accountant.history = [(setting.noise, setting.rate, setting.steps)]
            epsilons[name] = float(accountant.get_epsilon(setting.delta))
        google = RdpAccountant().compose(SelfComposedDpEvent(event, setting.steps))
        return {**epsilons, "google_rdp": float(google.get_epsilon(setting.delta))}


@contextmanager
def _quiet() -> Generator[None]:
    """Others' accountants warn of orders that they leave out; their bounds hold all the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def noise_speed() -> list[dict[str, Any]]:
    """Processor time of a million standard normal values, and the largest that a source can give."""
    import torch

    def four() -> object:
        return sum((torch.normal(0.0, 1.0, (VALUES,)) for _ in range(4)), torch.zeros(VALUES)) / 2

    numpy = np.random.default_rng(0)
    sources: Mapping[str, tuple[Callable[[], object], float | None]] = {
        "fedpeft: AES-256-CTR, float64": (lambda: noise.gaussian(VALUES), noise.SUPPORT),
        "torch.normal, float32": (lambda: torch.normal(0.0, 1.0, (VALUES,)), FLOAT32_SUPPORT),
        "sum of four torch.normal / 2, float32": (four, 2 * FLOAT32_SUPPORT),
        "numpy PCG64, float64": (lambda: numpy.standard_normal(VALUES), None),
    }
    return [
        {"source": name, "ms": 1e3 * best(work, 9)[1], "support": support}
        for name, (work, support) in sources.items()
    ]


def step_noise() -> list[dict[str, Any]]:
    """Processor time of what a step adds to its sum: Gaussian noise, or rounding to a grid and integers."""
    rows = list[dict[str, Any]]()
    for size in STEP_SIZES:
        plan = PrivacyPlan(0.1, 1.0, 1.0, 32, 1, 100, 1e-5)
        grid = Grid(size, OWN_FINENESS[0] * math.sqrt(size), 1, limit=OWN_LIMIT)
        whole, total = replace(plan, grid=grid), np.random.default_rng(0).normal(size=size)
        step = plan.clip / grid.steps_per_clip
        noisy_grid(total, whole)  # the table of the law is made once a run
        gaussian, discrete = (
            1e3 * best(work, 9)[1]
            for work in (
                lambda total=total: total + noise.gaussian(len(total)),
                lambda total=total, whole=whole, step=step: from_grid(noisy_grid(total, whole), step),
            )
        )
        more = noise_multiplier(whole, STEP_EPSILON) / noise_multiplier(plan, STEP_EPSILON) - 1
        rows.append({"values": size, "gaussian": gaussian, "discrete": discrete, "more_noise": more})
    return rows


STEP_EPSILON = 8.0
"""At which the noise of both is compared."""

FLOAT32_SUPPORT = float(np.sqrt(48 * np.log(2)))
"""Box-Muller over 24-bit uniforms ends here: at 5.77 standard deviations."""


def audits(
    epsilons: Iterable[float] = (1.0, 4.0, 8.0), repeats: int = 20, noise_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Audits of single releases; ``above`` counts bounds beyond the claim, of which one in 20 is right."""
    results: list[dict[str, Any]] = []
    for claimed in epsilons:
        runs = [audit(claimed, noise_scale=noise_scale) for _ in range(repeats)]
        results.append(
            {
                "claimed": claimed,
                "gaussian": float(np.median([run.gaussian for run in runs])),
                "counting": float(np.median([run.counting for run in runs])),
                "above": sum(run.gaussian > claimed for run in runs),
                "counting_above": sum(run.counting > claimed for run in runs),
                "repeats": repeats,
                "noise_scale": noise_scale,
            }
        )
    return results


def run(repeats: int = 20) -> dict[str, Any]:
    """All three tables; some minutes."""
    halved = audits(repeats=repeats, noise_scale=0.5)
    return {
        "machine": machine(),
        "accountants": accountants(),
        "noise": noise_speed(),
        "step_noise": step_noise(),
        "audits": audits(repeats=repeats) + halved,
    }


def show(facts: dict[str, Any]) -> None:
    """Print the tables."""
    from fedpeft.cli.output import table

    where = facts["machine"]
    table(f"epsilon by accountant ({where})", ACCOUNTANTS, map(_accountant_cells, facts["accountants"]))
    table(f"noise ({where})", NOISE, map(_noise_cells, facts["noise"]))
    table(f"noise of a whole step ({where})", STEP_NOISE, map(_step_cells, facts["step_noise"]))
    table(
        f"audit of one release of a million coordinates ({where})", AUDIT, map(_audit_cells, facts["audits"])
    )


def _accountant_cells(row: dict[str, Any]) -> list[str]:
    ours = row["fedpeft"]
    beside = [f"{row[name]:.3f} ({row[name] / ours - 1:+.1%})" for name in _COLUMNS]
    return [f"{row['rate']}, {row['noise']}, {row['steps']}, {row['delta']:g}", f"{ours:.4f}", *beside]


_COLUMNS = ("lower_bound", "opacus_prv", "opacus_rdp", "google_rdp")


def _noise_cells(row: dict[str, Any]) -> list[str]:
    support = "" if row["support"] is None else f"{row['support']:.2f}"
    return [row["source"], f"{row['ms']:.1f}", support]


def _step_cells(row: dict[str, Any]) -> list[str]:
    times = [f"{row[name]:.2f}" for name in ("gaussian", "discrete")]
    ratio = row["discrete"] / row["gaussian"]
    return [f"{row['values']:,}", *times, f"{ratio:.1f}", f"{row['more_noise']:.2%}"]


def _audit_cells(row: dict[str, Any]) -> list[str]:
    claimed, scale = row["claimed"], row["noise_scale"]
    name = f"{claimed:g}" + ("" if scale == 1 else f", noise x {scale:g}")
    shares = [(f"{row[key]:.3f}", f"{row[key] / claimed:.1%}") for key in ("gaussian", "counting")]
    above = f"{row['above']} and {row['counting_above']} of {row['repeats']}"
    return [name, *shares[0], *shares[1], above]
