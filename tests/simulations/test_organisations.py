import json

import pytest

from fedpeft.config import load_config
from fedpeft.errors import DataError
from fedpeft_simulations.organisations import load_federation


def _write(folder, name, count, label="yes"):
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"{name} question {i}?", "completion": f" {label}"} for i in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_file_of_a_folder_is_an_organisation(tmp_path):
    for name in ("clinic", "bank"):
        _write(tmp_path / "data", name, 20)
    federation = load_federation(load_config(overrides=[f"data.source={tmp_path / 'data'}"]))
    assert [item.name for item in federation.organisations] == ["bank", "clinic"]
    assert [len(item.train) for item in federation.organisations] == [16, 16]
    assert len(federation.test) == 4
    for item in federation.organisations:
        parts = [*item.train, *item.validation, *item.test]
        assert len({record.prompt for record in parts}) == len(parts) == 20


def test_a_test_file_is_no_organisation_and_nothing_else_is_held_out(tmp_path):
    folder = tmp_path / "data"
    for name in ("a", "b", "test"):
        _write(folder, name, 10)
    settings = [f"data.source={folder}", f"data.test={folder / 'test.jsonl'}"]
    federation = load_federation(load_config(overrides=settings))
    assert [item.name for item in federation.organisations] == ["a", "b"]
    assert len(federation.test) == 10


def test_one_data_set_is_partitioned_without_loss(tmp_path):
    _write(tmp_path, "all", 40)
    settings = [f"data.source={tmp_path / 'all.jsonl'}", "data.partition=iid", "federation.nodes=3"]
    federation = load_federation(load_config(overrides=settings))
    records = [r for o in federation.organisations for r in (*o.train, *o.validation, *o.test)]
    assert len(federation.organisations) == 3
    assert len({record.prompt for record in records}) == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.source={f}/absent"], "no data at"),
        (["data.source={f}/one.jsonl"], r"data\.partition"),
        (["data.source={f}/empty"], "not a folder of data files"),
        (["data.source={f}", "data.validation=0.6", "data.test_share=0.4"], "nothing to train"),
    ],
)
def test_unusable_sources_give_one_line(tmp_path, settings, message):
    _write(tmp_path, "one", 5)
    (tmp_path / "empty").mkdir()
    config = load_config(overrides=[setting.format(f=tmp_path) for setting in settings])
    with pytest.raises(DataError, match=message) as caught:
        load_federation(config)
    assert "\n" not in str(caught.value)


def test_the_embedded_federation_follows_its_seed():
    config = load_config(overrides=["data.samples=12", "data.test_samples=16", "federation.nodes=5"])
    first, second = load_federation(config), load_federation(config)
    other = load_federation(
        load_config(overrides=["data.samples=12", "data.test_samples=16", "federation.nodes=5", "run.seed=1"])
    )
    assert first == second != other
    assert len({item.name for item in first.organisations}) == 5


def test_a_datasets_folder_is_partitioned_and_taken_as_an_organisation(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": f"question {i}?", "completion": " yes"} for i in range(20)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "folder" / "clinic")
    _write(tmp_path / "folder", "bank", 20)
    federation = load_federation(load_config(overrides=[f"data.source={tmp_path / 'folder'}"]))
    assert [item.name for item in federation.organisations] == ["bank", "clinic"]
    settings = [f"data.source={tmp_path / 'folder' / 'clinic'}", "data.partition=iid", "federation.nodes=2"]
    federation = load_federation(load_config(overrides=settings))
    assert [len(item.train) for item in federation.organisations] == [8, 8]


def test_a_number_of_nodes_other_than_that_of_the_files_is_refused(tmp_path):
    for name in ("a", "b", "c"):
        _write(tmp_path / "data", name, 10)
    source = f"data.source={tmp_path / 'data'}"
    assert len(load_federation(load_config(overrides=[source, "federation.nodes=3"])).organisations) == 3
    with pytest.raises(DataError, match=r"federation\.nodes = 5, but .* holds 3 data files"):
        load_federation(load_config(overrides=[source, "federation.nodes=5"]))
