"""``fedpeft runs``: tables, CSV files and curves of several runs."""

import csv
import json

import pytest
import typer
from typer.testing import CliRunner

from fedpeft.cli import runs
from fedpeft.config import load_config
from fedpeft.errors import ConfigError, RunError
from fedpeft.runstore import create_run
from fedpeft.runstore.overview import curve, differences, facts


def _round(number, **facts):
    sizes = {"replies": 2, "bytes_up": 100, "bytes_down": 50, "total_s": 1.5}
    return {"event": "round", "round": number, "epsilon": {"a": "unbounded"}, **sizes, **facts}


def _loss(arm, round, loss):
    return {"event": "evaluation", "arm": arm, "round": round, "loss": loss, "accuracy": 0.5}


@pytest.fixture
def two(tmp_path):
    """Two runs that differ in a rate; the first is finished."""
    stores = []
    for name, rate in (("first", 0.1), ("second", 0.2)):
        overrides = [f"federation.lr={rate}", "federation.rounds=2", f"run.name={name}"]
        store = create_run(tmp_path / "runs" / name, load_config(overrides=overrides))
        for number in (1, 2):
            store.append(_round(number))
            store.append({"event": "training", "round": number, "loss": 5.0 - number, "nodes": {}})
        store.append(_loss("base", 0, 8.0))
        store.append(_loss("federated", 2, 2.0 + rate))
        stores.append(store)
    (stores[0].path / "run.json").write_text("{}")
    (tmp_path / "runs" / "no run").mkdir()
    return stores


@pytest.fixture
def invoke():
    app = typer.Typer()
    runs.register(app)

    def call(*arguments):
        done = CliRunner().invoke(app, ["runs", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


def test_list_shows_every_run_with_its_figures_and_writes_them_as_csv(two, invoke, tmp_path):
    folder, table = tmp_path / "runs", tmp_path / "out" / "runs.csv"
    listed = json.loads(invoke("list", folder, "--json", "--csv", table))["runs"]
    assert [row["run"] for row in listed] == ["first", "second"]
    assert [row["state"] for row in listed] == ["finished", "not finished"]
    assert listed[0] == facts(two[0])
    assert (listed[0]["loss"], listed[0]["base loss"], listed[0]["bytes up"]) == (2.1, 8.0, 200)
    assert listed[0]["epsilon"] == "unbounded" and listed[0]["rounds"] == "2 of 2"
    with table.open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["2.1", "2.2"]
    assert "first" in invoke("list", folder) and "200 B" in invoke("list", folder)


def test_show_tells_each_round(two, invoke):
    shown = json.loads(invoke("show", two[0].path, "--json"))
    assert [row["training loss"] for row in shown["by_round"]] == [4.0, 3.0]
    assert [row["loss"] for row in shown["by_round"]] == [None, 2.1]
    assert all(row["time"] for row in shown["by_round"])
    assert "rounds" in invoke("show", two[0].path)


def test_compare_names_the_settings_that_differ(two, invoke):
    assert differences(two) == {"federation.lr": [0.1, 0.2]}
    text = invoke("compare", *(store.path for store in two))
    assert "federation.lr" in text and "0.2" in text and "adapter.rank" not in text
    with pytest.raises(ConfigError, match="2 or more"):
        invoke("compare", two[0].path)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot_draws_a_line_for_each_run(two, invoke, tmp_path, suffix):
    picture = tmp_path / f"curves{suffix}"
    points = tmp_path / "points.csv"
    invoke("plot", *(s.path for s in two), "-o", picture, "--what", "training loss", "--csv", points)
    assert picture.stat().st_size > 1000
    assert len(points.read_text().splitlines()) == 5


def test_what_cannot_be_drawn_is_one_clear_line(two, invoke, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.svg"):
        invoke("plot", two[0].path, "-o", tmp_path / "curves.txt")
    with pytest.raises(ConfigError, match="none of these runs has recorded 'epsilon'"):
        invoke("plot", two[0].path, "-o", tmp_path / "curves.svg", "--what", "epsilon")
    with pytest.raises(RunError, match="no run in"):
        invoke("list", tmp_path / "runs" / "no run")


def test_curves_are_by_round_and_bytes_add_up(two):
    assert curve(two[0], "bytes up") == [(1, 100.0), (2, 200.0)]
    assert curve(two[0], "loss") == [(2, 2.1)]
    with pytest.raises(RunError, match="unknown curve"):
        curve(two[0], "speed")


def test_a_run_of_an_older_version_has_no_times_and_still_opens(two):
    lines = [json.loads(line) for line in two[0].metrics.read_text().splitlines()]
    two[0].metrics.write_text(
        "".join(json.dumps({k: v for k, v in e.items() if k != "time"}) + "\n" for e in lines)
    )
    assert facts(two[0])["loss"] == 2.1
