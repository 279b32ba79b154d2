"""``fedpeft adapter pack | info | unpack | diff | list`` as a user types them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fedpeft.adapters.export import export
from fedpeft.cli import build_app
from fedpeft.cli.packing import parse_share, parse_size
from fedpeft.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def folder(tmp_path, tiny_adapter):
    """An adapter of a run of fedpeft that has been trained a little, in words."""
    rng = np.random.default_rng(0)
    tiny_adapter.load(0.1 * rng.standard_normal(tiny_adapter.layout.size).astype(np.float32))
    export(tiny_adapter, tmp_path / "adapter")
    rows = [{"prompt": f"the patient asked {i % 7}", "completion": (" yes", " no")[i % 2]} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments, code=0):
    done = CliRunner().invoke(build_app(), ["adapter", *map(str, arguments)])
    if code == 0 and done.exception is not None:
        raise done.exception
    return done


def as_json(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


def refused(message, *arguments):
    done = CliRunner().invoke(build_app(), ["adapter", *map(str, arguments)])
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)


def test_pack_info_and_unpack(folder):
    packed = as_json("pack", folder / "adapter", "-o", folder / "a.fpa")
    assert packed["bytes_total"] == (folder / "a.fpa").stat().st_size
    assert as_json("info", folder / "a.fpa") == packed
    assert "levels" in run("info", folder / "a.fpa").stdout
    run("unpack", folder / "a.fpa", "-o", folder / "back")
    assert (folder / "back/adapter_model.safetensors").is_file()
    refused("exists", "pack", folder / "adapter", "-o", folder / "a.fpa")
    refused("exists", "unpack", folder / "a.fpa", "-o", folder / "back")


def test_every_way_to_say_how_small(folder):
    source = (folder / "adapter/adapter_model.safetensors").stat().st_size
    by_size = as_json("pack", folder / "adapter", "-o", folder / "a", "--target-size", "4kB")
    assert 3700 < by_size["bytes_total"] <= 4000
    by_ratio = as_json("pack", folder / "adapter", "-o", folder / "b", "--ratio", 8)
    assert 8 <= by_ratio["ratio"] == source / by_ratio["bytes_total"] < 8.5
    eval_ = ("--eval", folder / "rows.jsonl")
    by_loss = as_json("pack", folder / "adapter", "-o", folder / "c", "--max-loss-change", "5%", *eval_)
    assert by_loss["claim"]["packed_loss"] <= 1.05 * by_loss["claim"]["loss"]
    sparse = as_json("pack", folder / "adapter", "-o", folder / "d", "--density", 0.1, "--dense", "int8")
    assert [part["codec"] for part in sparse["parts"]] == ["int8", "ternary"]
    tuned = as_json(
        "pack", folder / "adapter", "-o", folder / "e", "--density", 0.2, "--alpha-grid", *eval_, "--seed", 0
    )
    assert {part["codec"] for part in tuned["parts"]} == {"seed", "ternary"}
    assert tuned["claim"]["records"] == 24
    kept = as_json("pack", folder / "adapter", "-o", folder / "f", "--keep", "q_proj", "--step", 0.7)
    assert [part["codec"] for part in kept["parts"]] == ["dense-bf16", "levels"]
    judged = as_json("pack", folder / "adapter", "-o", folder / "g", "--ratio", 7, *eval_)
    assert judged["ratio"] >= 7 and judged["claim"]


def test_the_table_shows_sizes_and_losses(folder):
    shown = run("pack", folder / "adapter", "--table").stdout
    assert "levels, step 0.1" in shown and "ComPEFT, density 20%, alpha 1" in shown
    found = as_json("pack", folder / "adapter", "--table", "--eval", folder / "rows.jsonl")
    assert len(found["table"]) == 18
    assert all(row["loss"] > 0 and row["change"] is not None for row in found["table"])
    both = as_json("pack", folder / "adapter", "--table", "-o", folder / "a")
    default = next(row for row in both["table"] if row["recipe"]["step"] == 0.1)
    assert both["bytes_total"] == default["bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to do"),
        (("-o", "x", "--ratio", "4", "--target-size", "1kB"), "give one of"),
        (("-o", "x", "--ratio", "4", "--step", "1"), "a goal determines --step and --density"),
        (("-o", "x", "--ratio", "0.5"), "at least 1"),
        (("-o", "x", "--target-size", "big"), "no size"),
        (("-o", "x", "--max-loss-change", "1%"), "needs held-out records"),
        (("-o", "x", "--alpha-grid"), "needs held-out records"),
        (("-o", "x", "--codec", "zip"), "levels, ternary"),
        (("-o", "x", "--dense", "zip"), "levels, dense-bf16"),
        (("-o", "x", "--codec", "levels", "--density", "0.1"), "belong to --codec ternary"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder, options, message):
    refused(message, "pack", folder / "adapter", *options)
    assert not (folder / "x").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("300", 300), ("300kB", 300_000), ("1.5 MB", 1_500_000), ("64KiB", 65_536), ("2b", 2)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_shares():
    assert parse_share("1%") == parse_share("0.01") == 0.01
    for text in ("x", "-1%", "inf", "nan", "%"):
        with pytest.raises(ConfigError, match="no share"):
            parse_share(text)


def test_diff_says_how_far_and_its_exit_code_whether(folder):
    run("pack", folder / "adapter", "-o", folder / "a.fpa")
    found = as_json("diff", folder / "adapter", folder / "a.fpa")
    assert not found["same"] and 0 < found["weight_change"] < 0.3
    shown = run("diff", folder / "adapter", folder / "a.fpa", "--rows", 2)
    assert "tensors that differ most, 2 of" in shown.stdout
    assert run("diff", folder / "adapter", folder / "a.fpa", "--exit-code", code=1).exit_code == 1
    assert run("diff", folder / "a.fpa", folder / "a.fpa", "--exit-code").exit_code == 0


def test_list_shows_good_and_bad_files(folder):
    shelf = folder / "shelf"
    shelf.mkdir()
    run("pack", folder / "adapter", "-o", shelf / "good.fpa")
    (shelf / "notes[red]\x1b[31m.txt").write_text("x")
    listed = as_json("list", shelf)
    assert list(listed["adapters"]) == ["good"] and len(listed["refused"]) == 1
    shown = run("list", shelf).stdout
    assert "good" in shown and "notes[red]?[31m.txt" in shown and "\x1b" not in shown


def test_a_run_directory_brings_seed_and_records(folder, tiny_model_folder):
    from fedpeft.config import load_config
    from fedpeft.runstore import create_run

    scenario = folder / "scenario.toml"
    scenario.write_text(f'[base]\nmodel = "{tiny_model_folder("llama")}"\ndevice = "cpu"\n')
    store = create_run(folder / "run", load_config(scenario))
    store.test.parent.mkdir()
    store.test.write_text((folder / "rows.jsonl").read_text())
    store.labels.write_text('[" no", " yes"]')
    (folder / "adapter").rename(store.adapter)
    for name, adapter in (("a", folder / "run"), ("b", store.adapter)):
        packed = as_json("pack", adapter, "-o", folder / name, "--max-loss-change", "10%")
        assert [part["codec"] for part in packed["parts"]] == ["levels", "seed"]
        assert packed["claim"]["records"] == 24
    other = as_json("pack", store.adapter, "-o", folder / "c", "--eval", folder / "run", "--seed", 5)
    assert [part["codec"] for part in other["parts"]] == ["levels"] and other["claim"]
