"""Two of eight nodes a round: what error feedback and cached broadcasts are worth, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedpeft.progress_reports import each
from fedpeft_bench.federation.federation import DENSE
from fedpeft_bench.federation.gain import Figures, Row, options, platform, row

SETTING: Mapping[str, Any] = {
    "federation.nodes": 8,
    "federation.participation": 0.25,
    "federation.rounds": 40,
}
"""Eight nodes of which two are drawn each round, for as many rounds as 16 rounds of 5 nodes give updates."""
FORGETFUL = {"exchange.up.error_feedback": False, "exchange.down.error_feedback": False}
RESYNC = {"exchange.cache_rounds": 0}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dense": DENSE,
    "feedback, cached": {},
    "feedback, not cached": RESYNC,
    "feedback down only, cached": {"exchange.up.error_feedback": False},
    "no feedback, cached": FORGETFUL,
    "no feedback, not cached": {**FORGETFUL, **RESYNC},
}


def rows(
    seeds: Sequence[int],
    profiles: Sequence[str] = ("drop-in", "thin"),
    report: Callable[[str], None] | None = None,
) -> list[Row]:
    """Run all variants of each profile for each seed; one row of figures each.

    Without the cache a node that missed a round is sent the whole state.

    Args:
        seeds: of data, adapter, batches and the draw of the nodes.
        profiles: names of profiles.
        report: receives the name of each variant when it is done.
    """
    results: list[Row] = []
    for profile in each(profiles, "profile"):
        for seed in each(seeds, "seed"):
            dense: Figures | None = None
            for name, settings in VARIANTS.items():
                chosen = {"exchange.profile": profile, **SETTING, **settings, "run.seed": seed}
                figures = platform(options(chosen))
                dense = dense or figures
                results.append(row(f"{profile}: {name}", seed, figures, dense))
                if report:
                    report(f"seed {seed}: {profile}, {name}")
    return results
