"""The benchmark of persons: whose records they are, and what is compared with what."""

from __future__ import annotations

from fedpeft.config import load_config
from fedpeft.config.scenarios import embedded_scenario
from fedpeft_bench.federation.gain import options
from fedpeft_bench.privacy import person_level
from fedpeft_simulations.organisations import load_federation


def test_every_few_notes_are_of_one_person_and_nothing_else_changes():
    config = load_config(embedded_scenario(), options({"data.samples": 20}))
    plain = load_federation(config)
    for part, before in zip(person_level.of_persons(plain).organisations, plain.organisations, strict=True):
        assert [record.person for record in part.train[:17]] == ["person 0"] * 8 + ["person 1"] * 8 + [
            "person 2"
        ]
        assert [record.prompt for record in part.train] == [record.prompt for record in before.train]


def test_both_ways_use_as_many_records_a_step_of_as_many_persons():
    config = load_config(embedded_scenario())
    found = person_level.variants(config, 64)
    assert len(found) == 2 * len(person_level.CAPS)
    for settings in found.values():
        cap, rate = settings["privacy.records_per_person"], settings["privacy.sampling_probability"]
        drawn = settings["federation.batch_size"] * (1 if settings["privacy.sampling"] == "record" else cap)
        assert drawn == 64
        assert abs(config.data.samples // person_level.RECORDS * cap * rate - 64) < 1e-9


def test_the_table_has_a_line_for_each_variant(capsys):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "loss": 1.0,
            "accuracy": 0.5 + seed / 10,
            "noise": 1.0,
            "noise_over_signal": 0.1,
        }
        for arm in ("a", "b")
        for seed in (0, 1)
    ]
    person_level.show({"machine": "here", "rows": rows})
    shown = capsys.readouterr().out
    assert shown.count("0.550") == 2 and "epsilon 8 per person" in shown
