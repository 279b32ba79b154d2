"""The benchmark of DP-SGD steps runs every engine, on a base small enough for a test."""

import pytest

from fedpeft_bench.privacy import dp_step

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def small_base(tmp_path):
    from fedpeft.adapters import detach
    from fedpeft.bases import forget_base

    dp_step.save_base(tmp_path, SMALL)
    yield str(tmp_path)
    detach()
    forget_base()


@pytest.mark.parametrize("engine", ["non-private", "batched", "loop", "opacus"])
def test_our_engines_take_measured_steps(small_base, engine, monkeypatch):
    monkeypatch.setattr(dp_step, "TOKENS", 16)
    facts = dp_step.measure(small_base, "none", engine, 3)
    assert facts["seconds"] > 0 and facts["steps"] == 3
    assert facts["extra_bytes"] >= 0 and facts["trainable"] > 1000


@pytest.mark.parametrize("engine", ["batched", "opacus"])
def test_engines_of_many_records_are_measured_at_the_length_of_the_examples(small_base, engine, monkeypatch):
    """A batch longer than the gates looked goes to the loop, whose figures these would be."""
    from fedpeft.training.dp import per_example

    singles = []
    monkeypatch.setattr(per_example, "unit_row", lambda *arguments: singles.append(arguments))
    step = dp_step._step_of(engine, dp_step._attached(small_base, "none"))
    step(dp_step._examples(3, dp_step.TOKENS))
    assert not singles


def test_ratios_are_over_the_first_engine(monkeypatch):
    def child(folder, quantisation, engine, steps):
        scale = 1 + dp_step.ENGINES.index(engine)
        return {
            "quantisation": quantisation,
            "engine": engine,
            "seconds": 0.5 * scale,
            "extra_bytes": 2**20 * scale,
        }

    monkeypatch.setattr(dp_step, "save_base", lambda folder: None)
    monkeypatch.setattr(dp_step, "_child", child)
    lines: list[str] = []
    rows = dp_step.rows(steps=1, report=lines.append)
    assert len(rows) == len(lines) == 2 * len(dp_step.ENGINES) - 1
    assert dp_step.cells(rows[2]) == ["none", "loop", "1.50", "3.00x", "3 MiB", "3.00x"]
    assert not any(row["engine"] == "torch vmap" and row["quantisation"] == "nf4" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", dp_step.QUANTISATIONS)
@pytest.mark.parametrize("engine", dp_step.ENGINES)
def test_every_engine_runs_in_a_child(small_base, engine, quantisation):
    if engine == "torch vmap" and quantisation == "nf4":
        pytest.skip("not differentiable there")
    assert dp_step._child(small_base, quantisation, engine, 1)["seconds"] > 0
