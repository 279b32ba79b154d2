"""The benchmark of token extraction on the embedded base: its tables hold what they say."""

import numpy as np
import pytest

from fedpeft.adapters import detach
from fedpeft_bench.audit import tokens, tokens_tables
from fedpeft_bench.audit.base import bench_base
from fedpeft_bench.audit.tokens_lab import RAW_QV, Lab, Setting, views_of
from fedpeft_bench.audit.tokens_sparse import SPOILS, completed, ternary, top
from fedpeft_bench.audit.tokens_tables import dager_distances, dager_guess


@pytest.fixture(scope="module")
def lab():
    yield Lab.of("embedded")
    detach()


def test_a_base_that_is_there_is_not_trained_again(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert bench_base(tmp_path) == str(tmp_path)


def test_the_undefended_format_is_read_and_other_data_are_not(lab, monkeypatch):
    monkeypatch.setattr(tokens_tables, "BATCHES", (1, 2))
    rows = list(tokens_tables.trained_a(lab, [0]))
    assert [(row["notes"], row["attack"][:4]) for row in rows] == [
        (1, "spar"),
        (1, "span"),
        (2, "spar"),
        (2, "span"),
    ]
    for row in rows[::2]:
        assert row["rare"]["value"] >= 0.9
        assert row["rare_precision"] >= 0.9
        assert row["rare"]["baselines"]["control"] < 0.6
    tokens.show({"machine": "here", "seeds": [0], "trained_a": rows})


def test_dager_reads_what_its_rank_allows_and_never_more_than_ours(lab, monkeypatch):
    monkeypatch.setattr(tokens_tables, "DAGER_RANKS", (8, 64))
    monkeypatch.setattr(tokens_tables, "DAGER_BATCHES", (1,))
    beyond, within = tokens_tables.against_dager(lab, [0])
    assert beyond["dager"]["claimed_recall"] == 0 < 0.9 <= beyond["ours"]["claimed_recall"]
    assert within["dager"]["claimed_recall"] >= 0.9
    assert within["ours"]["all"]["value"] >= within["dager"]["all"]["value"]


def test_dager_measures_the_distance_from_the_span(lab):
    bench = lab.bench(Setting("LoRA, A trained", 64, (), RAW_QV.targets, warm=True))
    (view,), truth = views_of(lab, bench, 1, 1, 0)
    distances = dager_distances(view)
    guess = dager_guess(view, distances, truth)
    inside, outside = list(truth), [token for token in guess.ranking if token not in truth]
    assert distances[inside].max() < distances[outside].min()
    assert guess.claimed == len(truth)


def test_paca_selects_inputs_and_is_read_through_them(lab):
    bench = lab.bench(Setting("PaCA", 8))
    for projection in bench.known.projections.values():
        assert (projection.sum(axis=1) == 1).all()
        assert set(np.unique(projection)) == {0.0, 1.0}


def test_scales_are_attacked_by_both_ways(lab, monkeypatch):
    monkeypatch.setattr(tokens_tables, "OCCASIONS", ((False, 1, 1),))
    rows = list(tokens_tables._format(lab, [0], Setting("(IA)3")))
    assert [row["method"] for row in rows] == ["correlation", "variances"]
    assert all(0 <= row["all"]["value"] < 0.9 for row in rows)


def test_sparse_supports_keep_the_largest_values():
    values = np.arange(-6, 4, dtype=np.float32)
    assert top(values, 0.2).tolist() == [-6, -5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert ternary(values, 0.2).tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, 0, 0]
    kept = SPOILS["random 20 %"](np.ones(10_000, np.float32)).mean()
    assert abs(kept - 0.2) < 5 * 0.004


def test_completion_restores_a_matrix_of_low_rank():
    from fedpeft_attacks.tokens.blocks import Block

    rng = np.random.default_rng(0)
    whole = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 40))
    seen = rng.random(whole.shape) < 0.5
    found = completed(Block(np.where(seen, whole, 0), np.eye(40))).rows
    assert np.linalg.norm(found - whole) < 0.05 * np.linalg.norm(whole)


@pytest.mark.slow
def test_all_tables_are_made_and_shown(lab, monkeypatch, tmp_path, capsys):
    small = {"BATCHES": (1,), "NODES": (2,), "STEPS": (1,), "DAGER_RANKS": (8,), "DAGER_BATCHES": (1,)}
    small |= {"FORMATS": ("LoRA, A frozen",), "OCCASIONS": ((False, 1, 2),), "SPARSE_RANKS": (8,)}
    for name, value in small.items():
        monkeypatch.setattr(tokens_tables, name, value)
    facts = {part: list(getattr(tokens_tables, part)(lab, [0])) for part in tokens.PARTS}
    tokens.show({"machine": "here", "seeds": [0], **facts})
    assert capsys.readouterr().out.count("seeds [0]") == len(tokens.PARTS)
