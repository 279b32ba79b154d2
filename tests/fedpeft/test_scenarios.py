"""One rule says which settings a command takes, and every command says which it took."""

import json

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.cli import configuration
from fedpeft.config import Config, load_config
from fedpeft.config.scenarios import embedded_scenario, load_scenario

OWN_DATA = ["data.source=/data/notes"]
EMBEDDED = load_config(embedded_scenario())


def _sections(config):
    return config.model_dump(exclude={"base": True, "data": {"source"}})


@pytest.mark.parametrize("overrides", [[], ["run.seed=7"], ["base.model=embedded"], ["base.threads=2"]])
def test_the_embedded_base_and_data_run_the_embedded_scenario(overrides):
    scenario = load_scenario(None, overrides)
    assert scenario.config == load_config(embedded_scenario(), overrides)
    assert scenario.origin.startswith("settings: the embedded scenario")


@pytest.mark.parametrize("overrides", [OWN_DATA, ["base.model=/models/mine"], ['data.source="/data/notes"']])
def test_own_data_or_an_own_base_inherit_nothing_from_the_embedded_scenario(overrides):
    scenario = load_scenario(None, overrides)
    assert _sections(scenario.config) == _sections(Config())
    assert "the defaults, because" in scenario.origin and overrides[0].partition("=")[0] in scenario.origin


def test_a_name_wins_over_the_rule(tmp_path):
    assert _sections(load_scenario("embedded", OWN_DATA).config) == _sections(EMBEDDED)
    assert load_scenario("defaults").config == Config()
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nseed = 3\n")
    scenario = load_scenario(path)
    assert scenario.config == load_config(overrides=["run.seed=3"]) and str(path) in scenario.origin


def test_config_show_says_its_scenario_and_stays_readable_for_machines(tmp_path):
    app = typer.Typer()
    configuration.register(app)
    plain = CliRunner().invoke(app, ["config", "show", "--set", "run.seed=7"])
    (tmp_path / "shown.toml").write_text(plain.stdout)
    assert load_config(tmp_path / "shown.toml") == load_config(embedded_scenario(), ["run.seed=7"])
    assert plain.stdout.startswith("# settings: the embedded scenario; --set changes run.seed\n")
    machine = CliRunner().invoke(app, ["config", "show", "--json", "--set", "data.source=/data/notes"])
    assert json.loads(machine.stdout)["federation"]["lr"] == Config().federation.lr
    assert machine.stderr.startswith("settings: the defaults, because data.source is given")
