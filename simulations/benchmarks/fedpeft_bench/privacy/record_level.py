"""Record-level privacy on the embedded federation: what it costs, and how its updates are best exchanged.

All runs are whole runs of the platform with ``[run.private]`` of the embedded scenario. Three tables:

* utility: noise of each node, independent and correlated over its steps and rounds (bands), and noise shared
  by all, at each epsilon, beside its twin, which differs in the noise alone;
* exchange: with many trained values (`MANY`), equal epsilon, and nearly equal bytes up for one family of
  codecs as for the other. ``seeded`` and ``released`` are the signs of values that both ends know beforehand
  (`fedpeft.exchange.PublicSupport`): gradients are cut down to them before the clip, and nothing else bears
  noise. With ``top-k`` every value bears noise and the largest are sent (ternary). ``dithered`` are all
  values in few bits, both ways;
* few: the values of ``[run.private]`` itself in fewer and fewer bits, up and down, at its clip and rate, and
  with the same draws and noise in all runs of a seed, which promises nothing but compares better.

Each family has the clip and the rate that a few runs on seed 0 found for it. The broadcast of the exchange
table is the same for all but ``dense`` and ``dithered``, which broadcast as they send. Noise and sampling of
the other tables are drawn anew in every run, so no figure there repeats.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedpeft.cli.output import table
from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft_bench.federation.federation import DENSE
from fedpeft_bench.federation.gain import options, over_seeds
from fedpeft_simulations.federation_run import run

Row = dict[str, Any]
Settings = Mapping[str, Any]

OPEN: Settings = {"exchange.profile": "drop-in", **DENSE}
"""The scenario without privacy and without compression."""

NO_NOISE = 1e-9
QUIET: Settings = {"run.baselines": [], "audit.enabled": False, "federation.evaluate_every": 0}
TITLES = {
    "utility": "record-level privacy, and the same without noise",
    "exchange": "epsilon 8: what may move against what is sent",
    "few": "epsilon 8, the same noise for all: bits of a value, up and down",
}
GAINS = ("loss_of_twin", "accuracy_of_twin", "loss_of_open", "accuracy_of_open")

COLUMNS = (
    "arm",
    "loss",
    "accuracy",
    "loss / twin",
    "acc. / twin",
    "loss / open",
    "acc. / open",
    "up / update",
    "noise mult.",
    "noise / signal",
)


@dataclass(frozen=True)
class Figures:
    """One finished federation.

    Attributes:
        base_loss: held-out loss of the base without adapter.
        base_accuracy: held-out accuracy of the base without adapter.
        loss: held-out loss of the final adapter.
        accuracy: held-out accuracy of the final adapter.
        up: bytes of one node's update, mean over rounds and nodes.
        noise: noise multiplier; 0 without privacy.
        noise_over_signal: of the whole run, over the largest possible signal; 0 without privacy.
    """

    base_loss: float
    base_accuracy: float
    loss: float
    accuracy: float
    up: float
    noise: float
    noise_over_signal: float


@dataclass(frozen=True)
class Variant:
    """One line of a table.

    Attributes:
        name: as printed.
        settings: what is set beside the private baseline of the scenario.
        epsilon: of the whole run.
    """

    name: str
    settings: Settings
    epsilon: float


def utility_variants() -> list[Variant]:
    """Who adds the noise, at both epsilons, each with its twin."""
    return [
        Variant(f"epsilon {epsilon:g}, {name}", at[epsilon], epsilon)
        for name, at in UTILITY.items()
        for epsilon in (8.0, 2.0)
    ]


def exchange_variants() -> list[Variant]:
    """All families of codecs at epsilon 8, from few bytes to many."""
    return [Variant(name, settings, 8.0) for name, settings in TUNED.items()]


def few_variants() -> list[Variant]:
    """Codecs of the values of the scenario itself; in one seed all have the same noise and draws."""
    same = {"privacy.randomness": "seeded"}
    return [Variant(name, {**settings, **same}, 8.0) for name, settings in FEW.items()]


def _shared(density: float, support: str, clip: float, lr: float) -> Settings:
    return _up("masked-sign", clip, lr) | {
        "exchange.up.density": density,
        "exchange.up.support": support,
    }


def _top(density: float, feedback: bool, clip: float, lr: float) -> Settings:
    return _up("ternary", clip, lr) | {
        "exchange.up.density": density,
        "exchange.up.error_feedback": feedback,
    }


def _ways(up: str, down: str) -> dict[str, Any]:
    """All values, by two codecs."""
    return {
        "exchange.up.codec": up,
        "exchange.up.density": 1.0,
        "exchange.down.codec": down,
        "exchange.down.density": 1.0,
    }


def _dithered(bits: int, clip: float, lr: float, density: float = 1.0) -> Settings:
    codec = f"dithered-{bits}"
    return _up(codec, clip, lr) | _ways(codec, codec) | {"exchange.up.density": density}


def _up(codec: str, clip: float, lr: float) -> dict[str, Any]:
    return {**MANY, "exchange.up.codec": codec, "privacy.clip": clip, "federation.lr": lr}


MANY: Settings = {
    "adapter.aggregation": "frozen_a",
    "adapter.rank": 16,
    "adapter.output_tokens": [],
    "adapter.target_modules": [],
    "adapter.skip_layers": [0, 1],
    "privacy.clip": 0.25,
    "federation.lr": 20.0,
    "federation.momentum": 0.9,
    "federation.lr_decay": 0.5,
    "federation.server.lr": 2.0,
    "exchange.up.codec": "masked-sign",
    "exchange.up.density": 0.5,
    "exchange.down.codec": "ternary",
    "exchange.down.density": 0.25,
}
"""B of all modules of the last layer: what the ways of exchanging, and the attacks on private runs in the
audit's benchmarks, were tuned and are compared on."""

MANY_AT: Mapping[float, Settings] = {8.0: MANY, 2.0: {**MANY, "federation.lr": 12.0}}
"""By epsilon, as `UTILITY`."""


TUNED: Mapping[str, Settings] = {
    "0.25 bit: seeded": _shared(0.25, "seed", 0.2, 32.0),
    "0.25 bit: released": _shared(0.25, "released", 0.2, 32.0),
    "0.25 bit: top-k": _top(0.033, False, 0.3, 32.0),
    "0.25 bit: top-k, feedback": _top(0.033, True, 0.3, 6.0),
    "0.5 bit: seeded": MANY,
    "0.5 bit: released": _shared(0.5, "released", 0.25, 20.0),
    "0.5 bit: top-k": _top(0.08, False, 0.3, 20.0),
    "1 bit: top-k": _top(0.2, False, 0.3, 14.0),
    "1 bit: top-k, feedback": _top(0.2, True, 0.3, 10.0),
    "1 bit: sign": _up("sign", 0.3, 10.0),
    "2 bits: dithered": _dithered(2, 0.3, 10.0),
    "2 bits: half of the values, dithered": _dithered(4, 0.25, 20.0, 0.5),
    "3 bits: dithered": _dithered(3, 0.3, 10.0),
    "4 bits: dithered": _dithered(4, 0.3, 10.0),
    "32 bits: dense": _up("dense-fp32", 0.3, 10.0) | {"exchange.down.codec": "dense-fp32"},
}
"""Every way of exchanging with its clip and rate; all values shared is ``sign``."""


FEW: Mapping[str, Settings] = {
    "2 bits up, 2 down": _ways("dithered-2", "dithered-2"),
    "2 bits up, 3 down": _ways("dithered-2", "dithered-3"),
    "2 bits up, 4 down": _ways("dithered-2", "dithered-4"),
    "2 bits up, 8 down": _ways("dithered-2", "int8"),
    "3 bits up, 3 down": _ways("dithered-3", "dithered-3"),
    "4 bits up, 4 down": _ways("dithered-4", "dithered-4"),
    "8 bits up, 8 down": _ways("int8", "int8"),
    "32 bits up, 32 down": _ways("dense-fp32", "dense-fp32"),
}
"""Ways of exchanging the values of ``[run.private]``."""

SHARED: Settings = {
    "privacy.trust": "distributed",
    "federation.rounds": 32,
    "federation.local_steps": 1,
    "federation.lr": 50.0,
    "federation.lr_decay": 0.95,
    "exchange.up.codec": "ternary",
    "exchange.down.codec": "int8",
    "exchange.secure.enabled": True,
    "exchange.secure.bits": 16,
}
"""One noise for the sum of all nodes, in place of one for each node's own steps."""

SIXTEEN: Settings = {**SHARED, "federation.nodes": 16}

BANDS: Settings = {"privacy.bands": 3}
"""The noise of each node, correlated over its steps and rounds."""

UTILITY: Mapping[str, Mapping[float, Settings]] = {
    "noise of each node": {8.0: {}, 2.0: {"federation.lr": 20.0}},
    "noise of each node, 3 bands": {8.0: BANDS, 2.0: {**BANDS, "federation.lr": 20.0}},
    "noise shared by 4 nodes": {8.0: SHARED, 2.0: SHARED},
    "noise shared by 16 nodes": {8.0: SIXTEEN, 2.0: SIXTEEN},
}
"""By name and epsilon; more noise bears less of a rate."""


def rows(seeds: Sequence[int], report: Callable[[str], None] | None = None, only: str = "") -> list[Row]:
    """Run the variants for each seed; one row of figures each, the base without adapter first.

    Args:
        seeds: of data, adapter and base; noise and sampling are drawn anew in every run.
        report: receives the name of each variant when it is done.
        only: what the names of the variants hold; all do by default.
    """
    return over_seeds(seeds, lambda seed: _rows(seed, only), report)


def _rows(seed: int, only: str) -> Iterator[Row]:
    measured = cache(lambda settings: measure((*settings, f"run.seed={seed}")))
    reference = measured(options(OPEN))
    yield row("utility", "base", seed, untrained(reference), reference)
    yield row("utility", "no privacy, dense", seed, reference, reference)
    for variant in _named(utility_variants(), only):
        twin = measured(private(variant.settings, None))
        yield row(
            "utility",
            variant.name,
            seed,
            measured(private(variant.settings, variant.epsilon)),
            reference,
            twin,
        )
        yield row("utility", f"{variant.name}, twin", seed, twin, reference)
    for part, variants in (("exchange", exchange_variants()), ("few", few_variants())):
        for variant in _named(variants, only):
            run_figures = measured(private(variant.settings, variant.epsilon))
            yield row(part, variant.name, seed, run_figures, reference)


def _named(variants: Sequence[Variant], only: str) -> list[Variant]:
    return [variant for variant in variants if only in variant.name]


def private(settings: Settings, epsilon: float | None) -> tuple[str, ...]:
    """Options of a private run; without epsilon those of its twin.

    The twin samples, clips and steps by the same law, but its noise is a billionth and everything random
    comes from the seed; the platform reports that it guarantees nothing.
    """
    scenario = load_config(embedded_scenario()).run.private
    chosen = {**scenario, **settings}
    del chosen["privacy.epsilon"]
    if epsilon is None:
        return options(chosen | {"privacy.noise_multiplier": NO_NOISE, "privacy.randomness": "seeded"})
    return options(chosen | {"privacy.epsilon": epsilon})


def measure(settings: Sequence[str]) -> Figures:
    """One whole run in this process, without baselines and audit.

    Raises:
        FedPeftError: the settings cannot be used, or the run failed.
    """
    events: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(embedded_scenario(), (*options(QUIET), *settings))
        store = run(config, Path(folder) / "run", "new", events.append)
        summary, rounds = store.summary, list(store.events("round"))
    loss, accuracy, promised = summary["loss"], summary["accuracy"], summary["privacy"]
    over = [event["noise_over_signal"] for event in events if event["event"] == "privacy"]
    return Figures(
        loss["base"],
        accuracy["base"],
        loss["federated"],
        accuracy["federated"],
        sum(event["bytes_up"] for event in rounds) / sum(event["replies"] for event in rounds),
        (promised["nodes"][0]["noise_multiplier"] or 0.0) if over else 0.0,
        over[0] if over else 0.0,
    )


def row(
    part: str, variant: str, seed: int, figures: Figures, reference: Figures, twin: Figures | None = None
) -> Row:
    """Figures, and the shares of two gains: of the twin's, where there is one, and of the open federation's.

    A gain is what training takes off the base's loss, or adds to its accuracy.

    Args:
        part: the table that it is a line of.
        variant: its name.
        seed: of data, adapter and base.
        figures: figures of the run.
        reference: those of the federation without privacy and compression.
        twin: those of the same run without noise.
    """
    gains = {
        f"{kind}_of_{name}": None if other is None else share(figures, other, kind)
        for name, other in (("twin", twin), ("open", reference))
        for kind in ("loss", "accuracy")
    }
    values = asdict(figures)
    return {"table": part, "arm": variant, "seed": seed, **values, **gains}


def untrained(figures: Figures) -> Figures:
    """The base without adapter; it sends nothing."""
    return replace(figures, loss=figures.base_loss, accuracy=figures.base_accuracy, up=0.0)


def share(figures: Figures, other: Figures, kind: str) -> float:
    """What a run gains over the base, as a share of what another gains; ``kind`` is loss or accuracy."""
    base: float = getattr(figures, f"base_{kind}")
    return (base - getattr(figures, kind)) / (base - getattr(other, kind))


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per table and variant, in order of appearance: means over seeds, worst gains, deviations.

    The standard deviation of a single seed is None.
    """
    result: list[Row] = []
    for part, variant in dict.fromkeys((row["table"], row["arm"]) for row in rows):
        group = [row for row in rows if (row["table"], row["arm"]) == (part, variant)]
        numbers = [key for key, value in group[0].items() if isinstance(value, float)]
        mean = {key: fmean(row[key] for row in group) for key in numbers}
        worst = {f"worst_{key}": min(row[key] for row in group) for key in GAINS if key in mean}
        spread = {f"spread_{key}": _deviation([row[key] for row in group]) for key in ("loss", "accuracy")}
        seeds = [row["seed"] for row in group]
        result.append({"table": part, "arm": variant, "seeds": seeds, **mean, **worst, **spread})
    return result


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def cells(mean: Row) -> list[str]:
    """A row of `means` as text, in the order of `COLUMNS`: means, with deviation or worst seed."""
    return [
        mean["arm"],
        f"{mean['loss']:.3f}{_spread(mean['spread_loss'])}",
        f"{mean['accuracy']:.3f}{_spread(mean['spread_accuracy'])}",
        *(f"{mean[key]:.0%} ({mean[f'worst_{key}']:.0%})" if key in mean else "" for key in GAINS),
        f"{mean['up']:,.0f}",
        f"{mean['noise']:.2f}",
        f"{mean['noise_over_signal']:.2f}",
    ]


def show(facts: Mapping[str, Any]) -> None:
    """Print the tables of what the command has found."""
    for name, title in TITLES.items():
        lines = [cells(mean) for mean in facts["means"] if mean["table"] == name]
        table(f"{title} ({facts['machine']})", COLUMNS, lines)


def _spread(deviation: float | None) -> str:
    return "" if deviation is None else f" ±{deviation:.3f}"
