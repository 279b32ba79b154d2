"""Public data sets by name; a table in memory stands for the hub."""

import json

import datasets
import pytest

from fedpeft.config import build_config
from fedpeft.data.readers import read_records
from fedpeft.errors import DataError
from fedpeft_simulations.public_tasks import TASKS, TEMPLATE, fetch


@pytest.fixture
def hub(monkeypatch):
    """A hub that has one table under every name, and says what it was asked for."""
    asked = []

    def serve(columns):
        def load_dataset(hub_id, split):
            asked.append((hub_id, split))
            return datasets.Dataset.from_dict(columns)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


@pytest.mark.parametrize("name", TASKS)
def test_a_task_becomes_records_that_the_template_reads(hub, name, tmp_path):
    asked = hub({"instruction": ["Say yes"], "input": [None], "output": ["yes"], "text": ["unused"]})
    assert fetch(name, tmp_path / "records.jsonl") == 1
    assert asked == [(TASKS[name], "train")]
    config = build_config({"data": {"template": TEMPLATE}})
    (record,) = read_records(tmp_path / "records.jsonl", config.data)
    assert record.completion == "yes"
    assert dict(record.fields) == {"instruction": "Say yes", "input": ""}


def test_what_cannot_be_fetched_is_one_line_and_writes_nothing(hub, tmp_path, monkeypatch):
    out = tmp_path / "records.jsonl"
    with pytest.raises(DataError, match="there are flowertune/general-nlp"):
        fetch("flowertune/law", out)
    hub({"question": ["a"], "answer": ["b"]})
    with pytest.raises(DataError, match="question, answer, not instruction"):
        fetch("flowertune/medical", out)

    def offline(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"ConnectionError: no route$"):
        fetch("flowertune/medical", out)
    assert not out.exists()
    out.write_text(json.dumps({}))
    with pytest.raises(DataError, match="exists"):
        fetch("flowertune/medical", out)
