import json

import numpy as np
import pytest

from fedpeft.errors import RunError
from fedpeft_server.rounds.checkpoints import Checkpoint, latest, save, trim_events


def test_the_newest_checkpoint_comes_back_and_old_ones_go(tmp_path):
    assert latest(tmp_path) is None
    for number in range(1, 5):
        arrays = {"exact": np.full(3, number, np.float64), "held": np.zeros(2, np.float32)}
        save(tmp_path, Checkpoint(number, {"keys": {"a": "ff"}}, arrays))
    found = latest(tmp_path)
    assert found is not None
    assert (found.round, found.facts) == (4, {"keys": {"a": "ff"}})
    np.testing.assert_array_equal(found.arrays["exact"], np.full(3, 4.0))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0003", "0004"]


def test_a_folder_without_a_whole_file_is_no_checkpoint(tmp_path):
    save(tmp_path, Checkpoint(1, {}, {}))
    (tmp_path / "checkpoints" / "0002").mkdir()
    (tmp_path / "checkpoints" / "0002" / ".state.npz.torn").write_bytes(b"PK")
    found = latest(tmp_path)
    assert found is not None
    assert found.round == 1


def test_a_damaged_checkpoint_says_so(tmp_path):
    save(tmp_path, Checkpoint(1, {}, {}))
    (tmp_path / "checkpoints" / "0001" / "state.npz").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="cannot read"):
        latest(tmp_path)


def test_events_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    events = [{"event": "hello"}, {"event": "round", "round": 1}, {"event": "round", "round": 2}]
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "rou')
    trim_events(path, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == events[:2]
