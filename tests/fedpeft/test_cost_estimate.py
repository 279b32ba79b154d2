"""Estimates of a plan: counted parts against the real thing, published sizes, and what the command says."""

import json
from pathlib import Path

import pytest

from fedpeft.adapters import attach
from fedpeft.bases import load_base
from fedpeft.cli import main
from fedpeft.config import build_config, load_config
from fedpeft.cost_estimate import estimate
from fedpeft.errors import BaseModelError

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("method", ["lora", "miss", "ia3"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_counts_are_those_of_the_loaded_base_and_adapter(tiny_model_folder, architecture, method):
    config = build_config(
        {
            "base": {"model": str(tiny_model_folder(architecture))},
            "adapter": {"method": method, "rank": 4, "skip_layers": []},
        }
    )
    needs, base = estimate(config), load_base(config.base)
    assert (needs.parameters, needs.base_bytes) == (base.parameters, 4 * base.parameters)
    assert needs.trainable == attach(base, config.adapter, 0).layout.size


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
    ],
)
def test_known_shapes_have_the_published_sizes(model, parameters):
    assert estimate(build_config({"base": {"model": model}})).parameters == parameters


def test_each_saving_is_seen(tiny_model_folder):
    plain = {"base": {"model": str(tiny_model_folder("llama"))}, "adapter": {"skip_layers": []}}

    def needs(section, **changes):
        return estimate(build_config({**plain, section: {**plain.get(section, {}), **changes}}))

    reference = estimate(build_config(plain))
    assert needs("base", quantisation="nf4").base_bytes < reference.base_bytes
    assert needs("base", gradient_checkpointing=True).step_flops > reference.step_flops
    assert needs("adapter", skip_layers=[0]).step_flops < reference.step_flops
    private = needs("privacy", unit="record", epsilon=8.0, public_records=100)
    assert private.per_example_bytes == 4 * private.trainable * 16


def test_an_unknown_base_is_an_error_that_names_the_known(tmp_path):
    with pytest.raises(BaseModelError, match=r"shapes are known of .*Llama-3\.2-1B"):
        estimate(build_config({"base": {"model": "no/such"}}))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_read_and_fits_a_card_of_24_gib(recipe, capsys, monkeypatch):
    config = load_config(recipe)
    assert estimate(config).memory < 0.8 * 24 * 2**30
    monkeypatch.setattr("sys.argv", ["fedpeft", "doctor", "--plan", str(recipe), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 200
