"""Bandwidth profiles fill in settings, and what is given beside them wins."""

import json

import pytest
from typer.testing import CliRunner

from fedpeft.config import Config, build_config, dump_config, load_config
from fedpeft.config.profiles import PROFILES
from fedpeft.errors import ConfigError
from fedpeft.exchange.plan import up_codec


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_sets_what_it_says(name):
    config = load_config(overrides=[f"exchange.profile={name}"])
    assert {key: value_of(config, key) for key in PROFILES[name].settings} == PROFILES[name].settings
    assert config == build_config({"exchange": {"profile": name}})
    assert PROFILES[name].measured
    assert PROFILES[name].purpose


def test_a_file_wins_over_its_profile(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text('[exchange]\nprofile = "thin"\n[exchange.up]\ndensity = 0.07\n')
    config = load_config(path)
    assert (config.exchange.up.density, config.exchange.down.density) == (0.07, 0.0455)
    assert load_config(path, ["exchange.down.density=0.09"]).exchange.down.density == 0.09


def test_a_profile_on_the_command_line_wins_over_the_file_but_not_over_other_options(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text('[federation]\noptimiser = "adamw"\n[exchange.up]\ndensity = 0.07\n')
    options = ["exchange.down.density=0.01", "exchange.profile=thin"]
    config = load_config(path, options)
    assert config.federation.optimiser == "sgd"
    assert (config.exchange.up.density, config.exchange.down.density) == (0.0455, 0.01)


def test_the_resolved_config_is_not_changed_by_its_profile(tmp_path):
    config = load_config(overrides=["exchange.profile=thin", "federation.optimiser=adamw"])
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_no_profile_changes_nothing_and_an_unknown_one_is_refused():
    assert load_config(overrides=["exchange.profile=none"]) == Config()
    with pytest.raises(ConfigError, match=r"exchange\.profile"):
        load_config(overrides=["exchange.profile=fast"])


RECORD = ("privacy.unit=record", "privacy.epsilon=8", "privacy.public_records=1000")


def test_noisy_gradients_are_exchanged_by_the_private_profile_unless_one_is_given():
    config = load_config(overrides=RECORD)
    assert config.exchange.profile == "private"
    assert config == load_config(overrides=[*RECORD, "exchange.profile=private"])
    assert load_config(overrides=[*RECORD, "exchange.up.codec=sign"]).exchange.up.codec == "sign"
    assert load_config(overrides=[*RECORD, "exchange.profile=none"]).exchange == Config().exchange
    secure = load_config(overrides=[*RECORD, "exchange.secure.enabled=true"]).exchange
    assert (secure.profile, secure.up) == ("none", Config().exchange.up)


def test_the_command_lists_them():
    from fedpeft.cli import build_app

    shown = json.loads(CliRunner().invoke(build_app(), ["config", "profiles", "--json"]).stdout)
    assert shown.keys() == PROFILES.keys()


@pytest.mark.parametrize("name", ["drop-in", "thin"])
def test_a_profile_can_be_summed_in_secret(name):
    config = load_config(overrides=[f"exchange.profile={name}", "exchange.secure.enabled=true"])
    assert up_codec(config.exchange).name == "public-ternary"
