"""``fedpeft privacy plan``: the figures, the verdict, the exit code, and nothing written."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.cli import privacy
from fedpeft.errors import ConfigError
from fedpeft.privacy.accounting import Steps, epsilon

RECORD = ("privacy.unit=record", "privacy.noise_multiplier=1.0", "federation.rounds=3")
NODE = (
    "privacy.unit=node",
    "privacy.trust=central",
    "privacy.epsilon=8",
    "exchange.up.error_feedback=false",
)


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    app = typer.Typer()
    privacy.register(app)

    def run(settings, *options):
        chosen = [part for setting in settings for part in ("--set", setting)]
        done = CliRunner().invoke(app, ["privacy", "plan", "defaults", *chosen, *options])
        assert list(tmp_path.iterdir()) == []
        return done

    return run


def test_the_plan_is_printed_with_unit_adjacency_and_trust(invoke):
    done = invoke(RECORD, "--values", "400")
    assert done.exit_code == 0
    for part in (
        "record, add-or-remove-one",
        "local",
        "0.08",
        "PLD",
        "epsilon by RDP",
        "all who see what leaves an organisation",
        "in each node's ledger",
        "0.002 of one in the 200 records",
        "moments of replies",
        "within privacy.max_noise_to_signal",
    ):
        assert part in done.stdout


def test_bands_groups_and_their_rate_are_printed_where_there_are_some(invoke):
    plain = ("federation.optimiser=sgd", "federation.momentum=0", "federation.local_steps=4")
    done = invoke((*RECORD, *plain, "privacy.bands=4"), "--values", "400")
    assert done.exit_code == 0
    for part in ("bands b", "groups of units", "in one step of 4", "rate b q = 0.32"):
        assert part in done.stdout
    facts = json.loads(invoke((*RECORD, *plain, "privacy.bands=4"), "--values", "400", "--json").stdout)
    assert (facts["bands"], facts["groups"], facts["step_rate"]) == (4, 4, pytest.approx(0.32))
    assert facts["epsilon"] == epsilon([Steps(0.32, 1.0, 3)], 1e-5)
    assert "bands" not in invoke(RECORD, "--values", "400").stdout


def test_the_json_holds_the_figures(invoke):
    facts = json.loads(invoke(RECORD, "--values", "400", "--json").stdout)
    assert facts["epsilon"] == epsilon([Steps(0.08, 1.0, 30)], 1e-5) < facts["epsilon_by_rdp"]
    assert facts["noise_over_signal_per_release"] == pytest.approx(20 / 16)
    assert facts["noise_over_signal_whole_run"] == pytest.approx(20 / 16 / (30 * 4) ** 0.5)
    assert facts["private"] and facts["allowed"] and facts["values"] == 400


def test_too_much_noise_is_refused_with_what_would_help(invoke):
    done = invoke(NODE, "--values", "10000", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 6 and not facts["allowed"]
    figures = [remedy["whole_run"] for remedy in facts["remedies"]]
    assert figures == sorted(figures) and len(figures) >= 5
    printed = invoke(NODE, "--values", "10000")
    assert "REFUSED" in printed.stdout and "federation.nodes = 16" in printed.stdout


SUMS = (
    "privacy.unit=node",
    "privacy.trust=distributed",
    "privacy.epsilon=8",
    "privacy.max_noise_to_signal=1000000",
    "federation.nodes=10",
    "exchange.up.error_feedback=false",
    "exchange.secure.enabled=true",
    "exchange.secure.bits=32",
    "exchange.secure.colluders=2",
)


def test_the_plan_of_secure_sums_says_how_many_colluders_it_withstands(invoke):
    done = invoke(SUMS, "--values", "1000")
    words = " ".join(done.stdout.split())
    assert "2 of 10, beside the coordinator" in words and "7, so 5 that do not collude" in words
    assert "replace-by-zero: the same roster" in words and "3 in a round" in words
    facts = json.loads(invoke(SUMS, "--values", "1000", "--json").stdout)
    assert facts["adjacency"] == "replace-by-zero" and facts["grid"]["colluders"] == 2
    assert facts["sums"] == {
        "nodes": 10,
        "threshold": 7,
        "quorum": 7,
        "honest": 5,
        "colluders": 2,
        "dropouts": 3,
    }
    assert facts["grid"]["least_nodes"] == facts["sums"]["honest"]


def test_more_colluders_cost_noise_and_too_many_are_refused(invoke):
    def noise(colluders):
        settings = (*SUMS[:-1], f"exchange.secure.colluders={colluders}")
        facts = json.loads(invoke(settings, "--values", "1000", "--json").stdout)
        return facts["noise_over_signal_whole_run"]

    assert noise(0) < noise(1) < noise(3)
    with pytest.raises(ConfigError, match="a sum needs 11 nodes"):
        raise invoke((*SUMS[:-1], "exchange.secure.colluders=9"), "--values", "1000").exception


def test_sums_without_dp_say_what_they_withstand(invoke):
    done = invoke(("exchange.secure.enabled=true",))
    assert "no differential privacy" in done.stdout and "1 of 4, beside the coordinator" in done.stdout


def test_without_dp_it_says_so(invoke):
    done = invoke(())
    assert done.exit_code == 0 and "no differential privacy" in done.stdout
    assert json.loads(invoke((), "--json").stdout)["private"] is False


def test_reproducible_noise_is_called_no_guarantee(invoke):
    seeded = (*RECORD, "privacy.randomness=seeded")
    facts = json.loads(invoke(seeded, "--values", "400", "--json").stdout)
    assert facts["private"] is False and facts["epsilon"] == "unbounded"
    assert "unbounded: the noise is reproducible" in invoke(seeded, "--values", "400").stdout


def test_the_adapter_gives_the_number_of_values(invoke):
    from fedpeft.adapters import attach
    from fedpeft.bases import load_base
    from fedpeft.config import Config

    config = Config()
    size = attach(load_base(config.base), config.adapter, config.run.seed).layout.size
    assert json.loads(invoke(RECORD, "--json").stdout)["values"] == size // 2, "signs on half of them"
    assert json.loads(invoke((*RECORD, "exchange.up.codec=sign"), "--json").stdout)["values"] == size


def test_classes_are_not_guessed(invoke):
    done = invoke((*RECORD, "base.task=sequence-classification"))
    assert done.exit_code != 0 and "give --values" in str(done.exception)


PERSONS = (
    *("privacy.unit=person", "privacy.epsilon=8", "data.person=person", "privacy.records_per_person=2"),
    *("privacy.public_records=50", "federation.batch_size=10", "federation.rounds=2"),
)


def test_persons_are_told_what_is_drawn_which_cap_is_best_and_what_several_nodes_come_to(invoke):
    done = invoke(PERSONS, "--values", "400", "--caps", "--json")
    facts = json.loads(done.stdout)
    assert [row["records"] for row in facts["caps"]] == [1, 2, 4, 8, 16]
    own = next(row["by_person"] for row in facts["caps"] if row["records"] == 2)
    assert own == pytest.approx(facts["noise_over_signal_whole_run"], rel=2e-3)
    assert [row["nodes"] for row in facts["epsilon_in_nodes"]] == [1, 2, 3, 4]
    assert facts["epsilon_in_nodes"][0]["epsilon"] == pytest.approx(facts["epsilon"], rel=2e-3)
    shown = invoke((*PERSONS, "privacy.sampling=record", "privacy.noise=discrete"), "--values", "400").stdout
    assert "single records (ELS); 2 records of a person in a step" in " ".join(shown.split())
    assert "discrete" in shown and "a person whose data are in several nodes" in shown
