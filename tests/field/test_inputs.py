"""The ordinary inputs work, so that what a test of an odd one sees comes from its oddness."""


def test_a_federation_of_ordinary_files_runs(fedpeft, settings, tmp_path):
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings())
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_an_ordinary_adapter_is_evaluated(fedpeft, inputs):
    done = fedpeft("adapter", "eval", inputs.adapter("good"), "--data", inputs.data("held.jsonl"))
    assert done.code == 0, done.err
    assert "loss" in done.out


def test_a_mistake_costs_one_line(fedpeft, settings, tmp_path):
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(source="missing.jsonl"))
    assert "missing.jsonl" in done.error
    assert not (tmp_path / "run").exists()
