"""``fedpeft bench bands``: what correlated noise gains over independent noise at equal epsilon.

Three tables:

* coefficients: errors of the optimised banded Toeplitz matrix beside the square root, and beside those of
  jax-privacy (``jax_privacy.matrix_factorization.toeplitz``) where it can be imported;
* local steps: noise of amplified bands, by rate, steps, epsilon and bands, over that of independent noise
  with Poisson sampling at the same expected batch: of the last iterate, and of the mean running sum;
* full turns: the same where all units of a group take part in every step that is theirs (``b q = 1``), also
  over independent noise for the same turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from fedpeft.cli.output import table
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.matrix import last_error, optimised, running_error, square_root
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft_bench.harness.command import machine

Row = dict[str, Any]

COEFFICIENTS = ((24, 2), (24, 3), (24, 4), (24, 6), (96, 12), (100, 10), (1000, 20))
"""Releases and bands."""

DELTA, BATCH = 1e-5, 64


class Setting(NamedTuple):
    """One run of local steps."""

    rate: float
    steps: int
    epsilon: float


SETTINGS = tuple(
    Setting(rate, steps, epsilon)
    for rate, steps in ((0.2, 24), (0.05, 24), (0.0125, 24), (0.2, 96), (0.0125, 96))
    for epsilon in (8.0, 2.0)
)
BANDS = (2, 3, 4, 6, 12)

COLUMNS = {
    "coefficients": (
        "releases",
        "bands",
        "square root",
        "optimised",
        "jax-privacy",
        "last, optimised",
        "last, jax",
    ),
    "steps": ("q", "steps", "epsilon", "bands", "b q", "noise mult.", "last iterate", "running sums"),
    "turns": ("bands = 1/q", "steps", "epsilon", "last iterate, over Poisson", "over the same turns"),
}
TITLES = {
    "coefficients": "error of running sums for unit noise",
    "steps": "noise of bands over that of independent noise, equal epsilon and batch",
    "turns": "without amplification: each group whole in its turn",
}


def run(report: Callable[[str], None]) -> Row:
    """All three tables, with machine and date."""
    report("coefficients")
    rows: Row = {"coefficients": [_coefficients(*shape) for shape in COEFFICIENTS]}
    report("local steps")
    rows["steps"] = [row for setting in SETTINGS for row in step_rows(setting)]
    report("full turns")
    rows["turns"] = [turn_row(bands, 24, epsilon) for bands in (3, 6) for epsilon in (8.0, 2.0)]
    return {"machine": machine(), "jax_privacy": _peer_version(), **rows}


def step_rows(setting: Setting) -> Iterator[Row]:
    """Every number of bands that the rate allows, over none."""
    plain = _errors(setting, 1)
    for bands in BANDS:
        if setting.steps % bands == 0 and bands * setting.rate <= 1:
            noise, last, running = _errors(setting, bands)
            gains = {"last": last / plain[1], "running": running / plain[2]}
            facts = {"bands": bands, "step_rate": bands * setting.rate, "noise_multiplier": noise}
            yield setting._asdict() | facts | gains


def turn_row(bands: int, steps: int, epsilon: float) -> Row:
    """Bands with whole groups over independent noise, Poisson sampled and in the same turns."""
    setting = Setting(1 / bands, steps, epsilon)
    noise, last, _ = _errors(setting, bands)
    same_turns = last / (noise * math.sqrt(steps))
    over_poisson = last / _errors(setting, 1)[1]
    return {"bands": bands, **setting._asdict(), "over_poisson": over_poisson, "over_turns": same_turns}


def _errors(setting: Setting, bands: int) -> tuple[float, float, float]:
    """Noise multiplier at the epsilon, and the noise of last iterate and running sums."""
    shape = PrivacyPlan(setting.rate, 1.0, 1.0, BATCH, setting.steps, 1, DELTA, bands=bands)
    noise, column = noise_multiplier(shape, setting.epsilon), optimised(bands, setting.steps)
    return noise, noise * last_error(column, setting.steps), noise * running_error(column, setting.steps)


def _coefficients(releases: int, bands: int) -> Row:
    column, root = optimised(bands, releases), square_root(bands)
    errors = {
        "square_root": running_error(root, releases),
        "optimised": running_error(column, releases),
        "last": last_error(column, releases),
    }
    return {"releases": releases, "bands": bands, **errors, **_peer(releases, bands)}


def _peer_version() -> str | None:
    try:
        import jax_privacy  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        return None
    return version("jax-privacy")


def _peer(releases: int, bands: int) -> Row:
    """Errors of jax-privacy's own optimum in float64, None where it cannot be imported."""
    if _peer_version() is None:
        return {"peer": None, "peer_last": None}
    import jax  # pyright: ignore[reportMissingImports]
    from jax_privacy.matrix_factorization import toeplitz  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)
    column = toeplitz.optimize_banded_toeplitz(releases, bands)
    squares = toeplitz.per_query_error(strategy_coef=column, n=releases)
    return {"peer": float(squares.mean()) ** 0.5, "peer_last": float(squares[-1]) ** 0.5}


def cells(name: str, row: Row) -> list[str]:
    """One row as text, in the order of `COLUMNS`."""
    if name == "coefficients":
        figures = (row[key] for key in ("square_root", "optimised", "peer", "last", "peer_last"))
        return [
            str(row["releases"]),
            str(row["bands"]),
            *(f"{x:.8f}" if x is not None else "" for x in figures),
        ]
    gains = ("last", "running") if name == "steps" else ("over_poisson", "over_turns")
    shown = [f"{row[gain]:.3f} ({row[gain] - 1:+.0%})" for gain in gains]
    if name == "turns":
        return [str(row["bands"]), str(row["steps"]), f"{row['epsilon']:g}", *shown]
    start = [f"{row['rate']:g}", str(row["steps"]), f"{row['epsilon']:g}", str(row["bands"])]
    return [*start, f"{row['step_rate']:g}", f"{row['noise_multiplier']:.3f}", *shown]


def show(facts: Mapping[str, Any]) -> None:
    """Print what the command has found."""
    peer = facts["jax_privacy"] or "not installed"
    for name, title in TITLES.items():
        lines = [cells(name, row) for row in facts[name]]
        table(f"{title} ({facts['machine']}; jax-privacy {peer})", COLUMNS[name], lines)
