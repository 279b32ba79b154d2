"""Persons as units on the embedded federation: drawn persons (ULS) against drawn records (ELS).

Each note of the embedded data has a person of its own. Here every `RECORDS` notes of an organisation in a row
are of one person; all else is ``[run.private]`` of the scenario. At equal epsilon per person a step of either
kind uses as many records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any
from unittest.mock import patch

from fedpeft.cli.output import table
from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft_bench.federation.gain import options, over_seeds
from fedpeft_bench.privacy.record_level import Figures, measure, private
from fedpeft_simulations import federation_run
from fedpeft_simulations.organisations import Federation, load_federation

Row = dict[str, Any]

RECORDS = 8
"""Notes of one person."""
CAPS = (2, 8)
"""Records of a person in a step that are compared."""
EPSILON = 8.0
COLUMNS = ("arm", "loss", "accuracy", "worst", "noise mult.", "noise / signal")


def of_persons(federation: Federation) -> Federation:
    """The same notes, every `RECORDS` of an organisation in a row of one person."""
    organisations = tuple(
        replace(
            part,
            train=[
                replace(record, person=f"person {index // RECORDS}")
                for index, record in enumerate(part.train)
            ],
        )
        for part in federation.organisations
    )
    return replace(federation, organisations=organisations)


def variants(config: Config, batch: int) -> dict[str, dict[str, Any]]:
    """Both ways under each cap, and with all records at once; settings of each."""
    persons = config.data.samples // RECORDS
    chosen = dict[str, dict[str, Any]]()
    for cap in CAPS:
        rate = batch / (persons * cap)
        common = {
            "privacy.unit": "person",
            "data.person": "person",
            "privacy.records_per_person": cap,
            "privacy.sampling_probability": rate,
        }
        for name, sampling, size in (("ELS", "record", batch), ("ULS", "person", batch // cap)):
            settings = {"privacy.sampling": sampling, "federation.batch_size": size}
            chosen[f"{name}, {cap} records of a person"] = common | settings
    return chosen


def rows(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> list[Row]:
    """Whole runs at `EPSILON` per person, one row for each seed and variant; the first is a noiseless twin.

    Args:
        seeds: of data, adapter and base; noise and sampling are drawn anew in every run.
        report: receives the name of each variant when it is done.
    """
    return over_seeds(seeds, _rows, report)


def _rows(seed: int) -> Iterator[Row]:
    config = load_config(embedded_scenario())
    batch = int(config.run.private["federation.batch_size"])

    def measured(settings: dict[str, Any], epsilon: float | None) -> Figures:
        chosen = private(settings, epsilon)
        grouped = lambda config: of_persons(load_federation(config))  # noqa: E731
        with patch.object(federation_run, "load_federation", grouped):
            return measure((*chosen, *options({"run.seed": seed})))

    chosen = variants(config, batch)
    first = next(iter(chosen))
    yield _row(f"{first}, without noise", seed, measured(chosen[first], None))
    for name, settings in chosen.items():
        yield _row(name, seed, measured(settings, EPSILON))


def _row(arm: str, seed: int, figures: Figures) -> Row:
    return {
        "arm": arm,
        "seed": seed,
        "loss": figures.loss,
        "accuracy": figures.accuracy,
        "noise": figures.noise,
        "noise_over_signal": figures.noise_over_signal,
    }


def show(facts: dict[str, Any]) -> None:
    """Print means over the seeds."""
    lines = list[list[str]]()
    for arm in dict.fromkeys(row["arm"] for row in facts["rows"]):
        group = [row for row in facts["rows"] if row["arm"] == arm]
        names = ("loss", "accuracy", "noise", "noise_over_signal")
        loss, accuracy, noise, over = (fmean(row[name] for row in group) for name in names)
        worst = min(row["accuracy"] for row in group)
        cells = (f"{loss:.3f}", f"{accuracy:.3f}", f"{worst:.3f}", f"{noise:.2f}", f"{over:.3f}")
        lines.append([arm, *cells])
    title = f"persons of {RECORDS} records, epsilon {EPSILON:g} per person ({facts['machine']})"
    table(title, COLUMNS, lines)
