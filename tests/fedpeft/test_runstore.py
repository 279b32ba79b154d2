import json
import multiprocessing
from datetime import UTC, datetime

import pytest

from fedpeft.config import load_config
from fedpeft.errors import RunError
from fedpeft.runstore import RunStore, check_free, create_run, write_atomic, write_json


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_run_keeps_its_config_and_refuses_a_second_life(tmp_path):
    config = load_config(overrides=["run.seed=7"])
    store = create_run(tmp_path / "run", config)
    assert RunStore.open(store.path).config == config
    with pytest.raises(RunError, match="--resume"):
        create_run(store.path, config)
    (store.path / "old").write_text("x")
    create_run(store.path, config, overwrite=True)
    assert not (store.path / "old").exists()


def test_a_folder_that_is_no_run_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="not a run"):
            create_run(tmp_path, load_config(), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(RunError, match=r"no config\.toml"):
        RunStore.open(tmp_path)


def test_a_run_that_was_killed_before_its_first_file_can_be_started_again(tmp_path):
    (tmp_path / ".config.toml.x1y2").write_text("[ba")
    check_free(tmp_path)
    create_run(tmp_path, load_config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_torn_last_event_is_left_out(tmp_path):
    store = create_run(tmp_path / "run", load_config())
    store.append({"event": "round", "round": 1})
    with store.metrics.open("a") as file:
        file.write('{"event": "rou')
    (event,) = store.events()
    assert datetime.fromisoformat(event.pop("time")).tzinfo == UTC
    assert event == {"event": "round", "round": 1}
    assert list(store.events("other")) == []


def _append(path, start):
    store = RunStore(path)
    for number in range(start, start + 50):
        store.append({"event": "x", "number": number})


def test_two_writers_never_tear_each_others_lines(tmp_path):
    store = create_run(tmp_path / "run", load_config())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(store.path, start)) for start in (0, 50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = store.metrics.read_text().splitlines()
    assert sorted(json.loads(line)["number"] for line in lines) == list(range(100))


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    store = create_run(tmp_path / "run", load_config())
    with pytest.raises(RunError, match="--resume"):
        _ = store.summary
