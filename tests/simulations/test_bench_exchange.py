"""The exchange benchmark: peers as their authors wrote them, figures that add up, and tables that print."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from fedpeft.errors import ConfigError
from fedpeft.exchange import Layout, entropy_bits, open_envelope
from fedpeft_bench.exchange import exchange_report
from fedpeft_bench.exchange.aggregate import Inbox, aggregate, rows
from fedpeft_bench.exchange.exchange import OURS, SPARSE, TERNARY, measure, symbol_bits
from fedpeft_bench.exchange.exchange_plots import draw
from fedpeft_bench.exchange.peers import ComPeftMasks, OpenFlStc, TopK, compeft_formula_bits, sparse_peers
from fedpeft_bench.exchange.peers_dense import Blockwise8, NormalFloat4, dense_peers
from fedpeft_bench.exchange.tensors import LARGE, SMALL, LoraShape, Vector, made_up
from fedpeft_bench.harness.sealing import VERIFIER, context

TINY = LoraShape(2, {"q_proj": (64, 48), "up_proj": (64, 128)}, rank=4)


@pytest.fixture(scope="module")
def vector():
    return made_up(TINY, uneven=True)


def passed(peer, vector):
    return peer.decode(peer.encode(vector.values, vector.layout), vector.layout)


def lost(peer, vector):
    return np.linalg.norm(passed(peer, vector) - vector.values) / np.linalg.norm(vector.values)


def test_made_up_adapters_have_the_shapes_of_real_ones():
    assert (len(SMALL.layout.names), SMALL.layout.size) == (140, 3_153_920)
    assert (len(LARGE.layout.names), LARGE.layout.size) == (320, 20_971_520)


@pytest.mark.parametrize("uneven", [False, True])
def test_only_uneven_vectors_have_tensors_of_different_scale(uneven):
    parts = made_up(TINY, uneven=uneven)
    typical = [np.median(np.abs(part)) for part in parts.layout.split(parts.values).values()]
    assert (max(typical) > 2 * min(typical)) == uneven


def test_compeft_formula_is_that_of_the_paper():
    assert compeft_formula_bits(10**6, 0.05) / 10**6 == pytest.approx(0.3364, abs=1e-4)
    assert compeft_formula_bits(10**6, 0.5) / 10**6 == pytest.approx(1.5, abs=1e-4)
    assert compeft_formula_bits(1000, 1.0) == 1000 + 16


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_compeft_masks_follow_the_authors_program(vector, density):
    values, size = vector.values, vector.layout.size
    kept = min(size, int(density * size) + 1)
    threshold = np.sort(np.abs(values))[-kept]
    signs = np.where(np.abs(values) >= threshold, np.sign(values), 0)
    for scale, expected in (("alpha", values.std()), ("mean", np.abs(values[signs != 0]).mean())):
        peer = ComPeftMasks(density, scale)
        assert len(peer.encode(values, vector.layout)) == 2 + 2 * math.ceil(size / 8)
        np.testing.assert_allclose(passed(peer, vector), signs * expected, rtol=2**-8, atol=0)


def test_openfl_stc_is_as_shipped_and_its_scale_too_small_by_the_density(vector):
    sent = passed(OpenFlStc(0.1), vector)
    for name, part in vector.layout.split(vector.values).items():
        flat, got = part.reshape(-1), vector.layout.split(sent)[name].reshape(-1)
        chosen = np.argsort(np.abs(flat))[flat.size - math.ceil(0.1 * flat.size) :]
        kept = flat[chosen] + np.float32(1e-7)
        expected = np.zeros_like(flat)
        expected[chosen] = np.sign(kept) * np.abs(kept).sum() / flat.size
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        assert np.abs(got).max() == pytest.approx(0.1 * np.abs(kept).mean(), rel=0.1)


def test_openfl_stc_carries_tensors_of_one_sign_and_of_all_values():
    layout = Layout(("a", "b"), ((40,), (3,)))
    values = np.concatenate([np.linspace(1, 2, 40), [-1, -1, 1]]).astype(np.float32)
    sent = OpenFlStc(1.0).decode(OpenFlStc(1.0).encode(values, layout), layout)
    np.testing.assert_array_equal(np.sign(sent), np.sign(values))


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_top_k_sends_the_largest_as_they_are(vector, dtype):
    values, peer = vector.values, TopK(0.05, dtype)
    count = round(0.05 * values.size)
    sent = passed(peer, vector)
    chosen = np.sort(np.argsort(np.abs(values))[-count:])
    np.testing.assert_array_equal(np.flatnonzero(sent), chosen)
    np.testing.assert_array_equal(sent[chosen], values[chosen].astype(dtype).astype(np.float32))
    assert len(peer.encode(values, vector.layout)) == count * (4 + np.dtype(dtype).itemsize)


def test_nf4_is_what_bitsandbytes_does():
    import torch
    from bitsandbytes import functional

    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    flat = Vector("", Layout(("a",), ((1000,),)), values)
    theirs = functional.dequantize_4bit(
        *functional.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type="nf4")
    )
    np.testing.assert_allclose(passed(NormalFloat4(), flat), theirs.numpy().reshape(-1), rtol=1e-6)
    assert len(NormalFloat4().encode(values, flat.layout)) == 16 * (4 + 32)


def test_dense_peers_lose_what_their_bits_cannot_hold(vector):
    limits = {"fp16 + gzip -6": 1e-3, "fp16 + zstd -3": 1e-3, "NVFLARE blockwise8": 0.03}
    for peer in dense_peers():
        assert 0 < lost(peer, vector) < limits.get(peer.label, 0.15)
    bits = 8 * len(Blockwise8().encode(vector.values, vector.layout)) / vector.layout.size
    assert 8 < bits < 8.2
    half = gzip.decompress(dense_peers()[0].encode(vector.values, vector.layout))
    np.testing.assert_array_equal(np.frombuffer(half, "<f2"), vector.values.astype("<f2"))


def test_the_bound_of_ternary_values_is_the_platforms_and_of_many_values_none(vector):
    ternary = passed(ComPeftMasks(0.1, "mean"), vector)
    assert symbol_bits(ternary, vector.layout) == pytest.approx(entropy_bits(ternary, vector.layout))
    assert symbol_bits(vector.values, vector.layout) is None
    four = np.tile(np.array([-2, -1, 1, 2], np.float32), vector.layout.size // 4)
    assert symbol_bits(four, vector.layout) == pytest.approx(2 * vector.layout.size)


def test_every_codec_has_a_row_whose_figures_add_up(vector):
    facts = measure(vector, SPARSE, (0.05, 0.5))
    found = {(row["codec"], row["density"]): row for row in facts["rows"]}
    peers = [*sparse_peers(0.05), *dense_peers()]
    assert {codec for codec, _ in found} >= {item.label for item in (*OURS, *peers)}
    ours, formula = found[TERNARY.label, 0.5], found["ComPEFT formula", 0.5]
    assert ours["against_formula"] == pytest.approx(ours["bytes"] / formula["bytes"])
    assert formula["against_ours"] == pytest.approx(1 / ours["against_formula"])
    assert formula["error"] == found["ComPEFT masks, alpha = 1", 0.5]["error"]
    for row in facts["rows"]:
        assert row["bits"] == pytest.approx(8 * row["bytes"] / vector.layout.size)
        assert row["excess"] is None or row["excess"] > 0 or row["who"] == "formula"
        assert row["who"] == "formula" or min(row["encode"], row["decode"]) > 0
        assert row["seal"] is None or row["seal"] >= row["encode"]
    assert ("OpenFL STC", 0.5) not in found


def test_a_package_that_is_missing_gives_a_row_that_says_so(vector, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    facts = measure(vector, (), (0.05,))
    row = next(row for row in facts["rows"] if row["codec"] == "fp16 + zstd -3")
    assert row["bytes"] is None and row["note"] == "zstandard not installed"


@pytest.fixture(scope="module")
def report():
    changed = pytest.MonkeyPatch()
    changed.setattr(exchange_report, "SMALL", TINY)
    changed.setattr(exchange_report, "LARGE_ENOUGH", 1)
    lines = []
    yield exchange_report.run(False, False, lines.append), lines
    changed.undo()


def test_the_report_judges_every_goal_and_prints(report, capsys):
    facts, lines = report
    assert len(lines) == len(facts["vectors"]) == 2
    assert [goal["goal"] for goal in facts["goals"]] == list(exchange_report.GOALS)
    worst = max(r["excess"] for v in facts["vectors"] for r in v["rows"] if r["codec"] == TERNARY.label)
    assert facts["goals"][1]["measured"] == worst and not facts["goals"][1]["met"]
    json.dumps(facts)
    exchange_report.show(facts)
    shown = capsys.readouterr().out
    assert "ComPEFT" in shown and "partition" in shown and "NO" in shown


def test_real_rounds_are_judged_by_their_worst_node():
    row = {"optimiser": "SGD", "adapter": "small", "worst": 0.7}
    ternary = {
        "codec": TERNARY.label,
        "density": 0.05,
        "excess": 0.0,
        "encode": 1e3,
        "seal": 1e3,
        "decode": 1e3,
    }
    vectors = [{"parameters": 3_000_000, "rows": [ternary]}]
    judged = exchange_report.goals(
        vectors, [row, row | {"worst": 0.8}, row | {"optimiser": "AdamW", "worst": 2}]
    )
    assert [goal["met"] for goal in judged] == [True] * 7 + [False]
    assert judged[-1]["measured"] == 0.8


def test_pictures_are_svg_files(report, tmp_path):
    files = draw(report[0], tmp_path / "plots")
    assert [file.name for file in files] == ["rate.svg", "bound.svg"]
    for file in files:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_aggregation_is_the_mean_and_repeats_bit_for_bit():
    facts = aggregate(nodes=5, distinct=2, layout=TINY.layout)
    assert facts["same_bits"] and facts["memory"] > 1 and facts["seconds"] >= facts["opening"] > 0
    assert len(rows(facts)) == 8
    inbox = Inbox.filled(TINY.layout, 2)
    total, *_ = inbox.total(5)
    sealed = [(data, context(sender=f"node-{node:03d}")) for node, data in enumerate(inbox.envelopes)]
    opened = [open_envelope(d, TINY.layout, inbox.plan.codec, c, VERIFIER).dense() for d, c in sealed]
    assert np.any((opened[0] != 0) != (opened[1] != 0))
    np.testing.assert_allclose(total, (3 * opened[0] + 2 * opened[1]) / 5, rtol=1e-5, atol=1e-9)


def test_aggregation_refuses_more_distinct_nodes_than_nodes():
    with pytest.raises(ConfigError, match="3 distinct of 2 nodes"):
        aggregate(nodes=2, distinct=3, layout=TINY.layout)


@pytest.mark.slow
def test_real_rounds_train_and_their_deltas_are_sealed():
    from fedpeft_bench.exchange import deltas

    made = list(deltas.train_rounds("SGD", deltas.SMALL, 2, local_steps=2))
    assert [round.number for round in made] == [1, 2]
    for round in made:
        assert len(round.deltas) == len(round.sent) == 4
        assert round.loss[1] < round.loss[0]
        facts = exchange_report.against_formula(round)
        assert facts["ratio"] <= facts["worst"] < 1.1


@pytest.mark.slow
def test_the_commands_print_one_json_object(tmp_path):
    fedpeft = str(Path(sys.executable).parent / "fedpeft")
    command = [fedpeft, "bench", "exchange", "--no-real", "--json", "--plots", str(tmp_path / "plots")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(Path(file).is_file() for file in json.loads(done.stdout)["plots"])
    command = [fedpeft, "bench", "aggregate", "--nodes", "4", "--distinct", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["same_bits"]
