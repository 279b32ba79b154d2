"""The bandwidth profiles on the embedded federation, against dense exchange and sparse baselines, over seeds.

Dense runs and profiles are whole runs of the platform, and their bytes are those of signed envelopes. The
baselines run in the `laboratory`, with the optimisers of ``thin``: FLASC (Kuo et al. 2024, arXiv 2406.05233)
and plain top-k, the latter also with error feedback. Each sends fp16 values with indices of 32 bits, at the
density of ``thin`` and at the density that needs its bytes; framing and signature are not charged to them.
FLASC is also run at the density of 1/4 that its authors start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpeft.config import load_config
from fedpeft.config.profiles import PROFILES
from fedpeft.config.scenarios import embedded_scenario
from fedpeft.exchange import Layout
from fedpeft_bench.exchange.peers import TopK
from fedpeft_bench.federation.gain import Figures, Row, options, over_seeds, platform, row
from fedpeft_simulations.federation_lab import Down, FederationLab, Up, coded_down, coded_up, sparse_state

DENSE: Mapping[str, Any] = {"exchange.up.codec": "dense-fp32", "exchange.down.codec": "dense-fp32"}
TERNARY: Mapping[str, Any] = {
    f"exchange.{way}.{key}": value
    for way in ("up", "down")
    for key, value in {"codec": "ternary", "density": 0.2}.items()
}
PUBLISHED = 0.25
"""Density of FLASC in most of its authors' experiments."""

Directions = Callable[[Layout], tuple[Up, Down]]


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        name: as printed.
        profile: whose optimisers it uses; dense exchange with them is its reference.
        settings: what else is set.
        directions: the exchange of a baseline; None: a run of the platform.
    """

    name: str
    profile: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    directions: Directions | None = None


def top_k(density: float, *, feedback: bool) -> Directions:
    """Plain top-k of the change in both directions."""
    coder = TopK(density, "<f2")
    return lambda layout: (
        coded_up(coder, layout, feedback=feedback),
        coded_down(coder, layout, feedback=feedback),
    )


def flasc(density: float) -> Directions:
    """FLASC: top-k of the update up, top-k of the state down, dense training from it."""
    coder = TopK(density, "<f2")
    return lambda layout: (coded_up(coder, layout, feedback=False), sparse_state(coder, layout))


def variants() -> list[Variant]:
    """The lines of the table, each dense reference before what is measured against it."""
    return [
        Variant("dense, AdamW", "drop-in", DENSE),
        Variant("drop-in", "drop-in"),
        Variant("drop-in as ternary 20 %", "drop-in", TERNARY),
        Variant("dense, SGD + Adam", "thin", DENSE),
        Variant("thin", "thin"),
        *_baselines(),
    ]


def _baselines() -> Iterator[Variant]:
    same = PROFILES["thin"].settings["exchange.up.density"]
    as_thin = 4 / 100 / (4 + 2)  # a hundredth of four bytes a value, at six bytes a value that is sent
    for density in (same, as_thin):
        yield Variant(f"FLASC {density:.2%}", "thin", {}, flasc(density))
        yield Variant(f"top-k {density:.2%}", "thin", {}, top_k(density, feedback=False))
        yield Variant(f"top-k {density:.2%}, feedback", "thin", {}, top_k(density, feedback=True))
    yield Variant(f"FLASC {PUBLISHED:.0%}", "thin", {}, flasc(PUBLISHED))


def rows(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> list[Row]:
    """Run all variants for each seed; one row of figures each.

    Args:
        seeds: of data, adapter and batches.
        report: receives the name of each variant when it is done.
    """
    return over_seeds(seeds, _rows, report)


def _rows(seed: int) -> Iterator[Row]:
    dense: dict[str, Figures] = {}
    for variant in variants():
        chosen = {"exchange.profile": variant.profile, **variant.settings, "run.seed": seed}
        figures = measure(options(chosen), variant.directions)
        yield row(variant.name, seed, figures, dense.setdefault(variant.profile, figures))


def measure(settings: Sequence[str], directions: Directions | None) -> Figures:
    """One federation, in the platform or in the laboratory."""
    if directions is None:
        return platform(settings)
    laboratory = FederationLab.of(load_config(embedded_scenario(), settings))
    base = laboratory.score(laboratory.attached.initial())
    result = laboratory.run(*directions(laboratory.layout))
    reached = result.score.accuracy or 0.0
    return Figures(base.loss, base.accuracy or 0.0, result.score.loss, reached, result.up, result.down)
