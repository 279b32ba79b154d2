"""Settings that the people of public bug reports wrote, and mistakes in them that cost a whole run."""

import pytest

from fedpeft.adapters import attach, detach
from fedpeft.bases import load_base
from fedpeft.config import load_config
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.config.scenarios import load_scenario
from fedpeft.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"audit__attacks": '["sequence"]'}, "the nearest attack is 'sequences'"),
        ({"audit__rounds": "[0]"}, "audit.rounds names 0, but federation.rounds = 1"),
        ({"audit__rounds": "[1, 4]"}, "audit.rounds names 4"),
        ({"audit__rounds": "[-2]"}, "audit.rounds names -2"),
    ],
)
def test_an_audit_of_nothing_is_refused_before_training(fedpeft, settings, tmp_path, changes, line):
    """Found late: the audit asked for its attacks after hours of training (londonaicentre/FLIP#1001)."""
    options = settings(audit__enabled="true", **changes)
    for command in (("config", "show"), ("simulate", "--quiet", "--out", tmp_path / "run")):
        done = fedpeft(*command, *options)
        assert done.code == 2
        assert line in done.error
    assert not (tmp_path / "run").exists()


def test_settings_of_an_older_run_that_taps_no_such_round_are_still_read(tmp_path):
    (tmp_path / "config.toml").write_text("[audit]\nrounds = [1, 50]\n")
    assert load_config(tmp_path / "config.toml").audit.rounds == (1, 50)


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("all-linear", ("all-linear",)),
        ("q_proj", ("q_proj",)),
        ('"q_proj"', ("q_proj",)),
        ('["q_proj", "v_proj"]', ("q_proj", "v_proj")),
    ],
)
def test_target_modules_are_written_as_in_peft(text, modules):
    """huggingface/peft#3554 and peft's own documentation of ``all-linear``."""
    assert load_config(overrides=[f"adapter.target_modules={text}"]).adapter.target_modules == modules


def test_all_linear_means_all_for_a_method_with_targets_of_its_own(inputs):
    base = load_base(BaseConfig(model=str(inputs.base("llama")), device="cpu"))
    chosen = AdapterConfig(method="ia3", target_modules="all-linear", skip_layers=())  # pyright: ignore[reportArgumentType]
    assert len(attach(base, chosen, 0).spec.targets) == 14
    detach()


@pytest.mark.parametrize(
    ("text", "revision"),
    [("12e4567", "12e4567"), ("1234567", "1234567"), ("007", "007"), ("true", "true"), ('"main"', "main")],
)
def test_a_setting_of_type_text_takes_text(text, revision):
    """A commit such as 12e4567 is a number in TOML."""
    assert load_config(overrides=[f"base.revision={text}"]).base.revision == revision


def test_other_settings_still_take_numbers_and_tables():
    config = load_config(overrides=["run.seed=7", "federation.lr=1e-3", 'run.arms=["centralised"]'])
    assert (config.run.seed, config.federation.lr, config.run.baselines) == (7, 1e-3, ("centralised",))


def test_toml_with_a_byte_order_mark_is_read(tmp_path):
    """Editors of Windows write one."""
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf[run]\nseed = 7\n")
    assert load_scenario(tmp_path / "mine.toml").config.run.seed == 7


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "mine.toml").write_bytes("[run]\nname = 'é'\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        load_scenario(tmp_path / "mine.toml")
