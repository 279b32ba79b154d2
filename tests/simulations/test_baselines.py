"""Two processes share the baselines of a run: each is computed once, by whoever comes first."""

import fcntl
import json
from types import SimpleNamespace

from fedpeft_simulations.baselines import result_file, run_baselines


def _store(path):
    run = SimpleNamespace(baselines=["local_only", "centralised"])
    return SimpleNamespace(path=path, config=SimpleNamespace(run=run))


def test_what_is_free_is_computed_once_and_only_if_it_was_asked_for(tmp_path):
    store, computed = _store(tmp_path), []
    runners = {
        name: lambda _, name=name: computed.append(name) or {"loss": 1.0}
        for name in ("private", "local_only", "centralised")
    }
    run_baselines(store, runners)
    run_baselines(store, dict(reversed(runners.items())))
    assert computed == ["local_only", "centralised"]
    assert json.loads(result_file(store, "local_only").read_text()) == {"loss": 1.0}


def test_a_baseline_that_another_process_is_at_is_left_to_it(tmp_path):
    store, computed = _store(tmp_path), []
    runners = {
        name: lambda _, name=name: computed.append(name) or {} for name in ("local_only", "centralised")
    }
    lock = result_file(store, "local_only").with_suffix(".lock")
    lock.parent.mkdir()
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        run_baselines(store, runners)
        assert computed == ["centralised"]
    run_baselines(store, runners)  # it was killed
    assert computed == ["centralised", "local_only"]
