import json

import pytest

from fedpeft.config import Config, build_config, canonical, config_hash, dump_config, load_config
from fedpeft.config.renamed import RENAMED
from fedpeft.config.scenarios import load_scenario
from fedpeft.errors import ConfigError


def test_defaults_are_valid_and_round_trip_through_toml(tmp_path):
    config = load_config()
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config))
    assert load_config(path) == config == Config()


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text("[run]\nseed = 1\n[federation]\nrounds = 3\n")
    config = load_config(path, ["run.seed=7", "federation.lr=0.5", "data.source=notes.csv"])
    assert (config.run.seed, config.federation.rounds, config.federation.lr) == (7, 3, 0.5)
    assert config.data.source == "notes.csv"


def test_override_of_a_table_entry():
    ranks = load_config(
        overrides=[
            "adapter.aggregation=reproject",
            "adapter.ranks.hospital=4",
            "exchange.down.codec=dense-fp32",
        ]
    ).adapter.ranks
    assert ranks == {"hospital": 4}


VALUES = {"exchange.secure.least_nodes": 3, "privacy.most_noise": 2.5, "run.arms": ["private"]}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_of_settings_mean_the_same_run(old, new, tmp_path):
    """In files, in overrides, and in the form that nodes and coordinators of version 0.1 hash and send."""
    section, _, key = old.rpartition(".")
    path = tmp_path / "scenario.toml"
    path.write_text(f"[{section}]\n{key} = {VALUES[old]}\n")
    config = load_config(overrides={new: VALUES[old]})
    assert config == load_config(path) == load_config(overrides=[f"{old}={VALUES[old]}"])
    assert canonical(config).count(f'"{key}":'.encode()) == 1
    assert build_config(json.loads(canonical(config))) == config
    assert f"{old} is now {new}; old names work until 0.3" in load_scenario(path).origin


def test_an_override_of_either_name_wins_over_the_file(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text("[privacy]\nmost_noise = 2.0\n")
    assert load_config(path, ["privacy.max_noise_to_signal=3"]).privacy.max_noise_to_signal == 3
    path.write_text("[privacy]\nmax_noise_to_signal = 2.0\n")
    assert load_config(path, ["privacy.most_noise=3"]).privacy.max_noise_to_signal == 3


def test_a_setting_under_both_names_is_refused():
    with pytest.raises(ConfigError, match=r"'privacy.most_noise' and 'privacy.max_noise_to_signal'"):
        build_config({"privacy": {"most_noise": 1.0, "max_noise_to_signal": 2.0}})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("federation.round", "federation.rounds"),
        ("run.sed", "run.seed"),
        ("epsilon", "privacy.epsilon"),
        ("exchange.up.desity", "exchange.up.density"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(ConfigError, match=rf"unknown setting '{key}'.*'{nearest}'"):
        load_config(overrides=[f"{key}=1"])


def test_unknown_key_in_a_file_names_the_nearest(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text("[federation]\nlocal_step = 3\n")
    with pytest.raises(ConfigError, match=r"'federation\.local_step'.*'federation\.local_steps'"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=-1", "run.seed"),
        ("federation.rounds=many", "federation.rounds"),
        ("adapter.method=dora", "adapter.method"),
        ("run.seed", "needs key=value"),
        ("privacy.epsilon=8", "privacy.unit"),
        ("privacy.unit=record", "exactly one"),
        ("federation.quorum=9", "quorum"),
    ],
)
def test_bad_values_give_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides=[override])
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_give_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no scenario file"):
        load_config(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\nseed=1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)


def test_config_is_frozen_and_its_hash_follows_its_content():
    config = load_config()
    with pytest.raises(Exception, match="frozen"):
        config.run.seed = 3
    assert config_hash(config) == config_hash(build_config({}))
    assert config_hash(config) != config_hash(load_config(overrides=["run.seed=1"]))


def test_stack_and_reproject_refuse_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"exchange\.down\.codec"):
        load_config(overrides=["adapter.aggregation=reproject"])
    with pytest.raises(ConfigError, match=r"adapter\.ranks"):
        load_config(overrides=["adapter.ranks.a=3"])


@pytest.mark.parametrize(
    ("rounds", "setting", "tapped"),
    [
        (16, '["middle", -1]', [8, 16]),
        (1, '["middle", -1]', [1]),
        (2, '["middle", -1]', [1, 2]),
        (5, '["middle"]', [3]),
        (5, "[1, -2]", [1, 4]),
    ],
)
def test_rounds_are_tapped_from_the_front_the_end_and_the_middle(rounds, setting, tapped):
    config = load_config(overrides=[f"audit.rounds={setting}", f"federation.rounds={rounds}"])
    assert [number for number in range(1, rounds + 1) if config.audit.taps(number, rounds)] == tapped
    if setting == '["middle", -1]':
        assert config.audit == load_config().audit
    with pytest.raises(ConfigError, match=r"audit\.rounds"):
        load_config(overrides=["audit.rounds=[last]"])


def test_ghost_clipping_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"ghost clipping .* may pass uncut .*; set 'opacus'"):
        load_config(overrides={"run.engine": "opacus-ghost"})
