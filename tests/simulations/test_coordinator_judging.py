"""The coordinator's own held-out figures of a deployed run."""

import shutil
import time

import pytest

from fedpeft.adapters import detach
from fedpeft.data import Record, write_records
from fedpeft.evaluation.adapter_folder import evaluate_run
from fedpeft.runstore import RunStore, write_json
from fedpeft_server.rounds.final_adapter import export_adapter
from fedpeft_server.service import held_out_evaluation
from fedpeft_server.service.held_out_evaluation import HeldOutEvaluation

ROUNDS = 5
OWN = [Record(f"the nurse wrote letter {n}", "red" if n % 2 else "green") for n in range(8)]


@pytest.fixture
def finished(federation, monkeypatch):
    """A function to a run that is done, has the coordinator's records and was not judged."""
    monkeypatch.setattr(held_out_evaluation, "POLL_SECONDS", 0.01)

    def make(every=1, aggregation="frozen_a"):
        adapter = {"rank": 2, "aggregation": aggregation}
        exchange = {"down": {"codec": "dense-fp32"}}
        prepared = federation(
            adapter=adapter, exchange=exchange, federation={"rounds": ROUNDS, "evaluate_every": every}
        )
        prepared.go()
        store = RunStore(prepared.run)
        write_records(store.test, OWN)
        write_json(store.labels, [])
        export_adapter(store.path)
        return store

    return make


def go_back(store, round):
    for number in range(round + 1, ROUNDS + 1):
        shutil.rmtree(store.path / "checkpoints" / f"{number:04d}")


def judged(store):
    return [(event["arm"], event["round"]) for event in store.events("evaluation")]


@pytest.mark.parametrize("aggregation", ["frozen_a", "reproject"])
def test_base_round_and_result_are_judged(finished, aggregation):
    store = finished(aggregation=aggregation)
    with HeldOutEvaluation(store).beside():
        pass
    assert judged(store) == [("federated", ROUNDS)]
    plain = evaluate_run(store.path)
    (told,) = store.events("evaluation")
    assert told["loss"] == pytest.approx(plain.loss, rel=1e-4) and told["accuracy"] is None
    go_back(store, 4)
    again = HeldOutEvaluation(store)
    again._evaluated.clear()
    again.catch_up()
    assert judged(store)[1:] == [("base", 0), ("federated", 4)]
    losses = [event["loss"] for event in store.events("evaluation")]
    assert len(set(losses)) == 3


def test_rounds_that_are_not_due_are_passed_over(finished):
    store = finished(every=3)
    go_back(store, 4)
    one = HeldOutEvaluation(store)
    one.catch_up()
    one.catch_up()
    assert judged(store) == [("base", 0), ("federated", 4)], "3 was passed by, 4 stands for it"
    never = finished_again(store, 0)
    never.catch_up()
    assert judged(never.store) == [("base", 0)]


def finished_again(store, every):
    store.metrics.unlink()
    text = (store.path / "config.toml").read_text()
    (store.path / "config.toml").write_text(text.replace("evaluate_every = 3", f"evaluate_every = {every}"))
    return HeldOutEvaluation(store)


def test_it_begins_with_the_first_event(finished):
    store = finished()
    go_back(store, 4)
    one = HeldOutEvaluation(store)
    with pytest.raises(KeyError), one.beside():
        raise KeyError
    assert judged(store) == []
    two = HeldOutEvaluation(store)
    with two.beside():
        two.report({"event": "hello"})
        end = time.monotonic() + 60
        while len(judged(store)) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert judged(store) == [("base", 0), ("federated", 4), ("federated", ROUNDS)]


def test_without_records_nothing_is_judged(finished):
    store = finished()
    store.test.unlink()
    with HeldOutEvaluation(store).beside():
        pass
    assert judged(store) == []


def test_a_failure_is_told_and_ends_nothing(finished, capsys):
    store = finished()
    store.test.write_text('{"prompt": "secret"}\n')
    detach()
    with HeldOutEvaluation(store).beside():
        pass
    told = capsys.readouterr().err
    assert judged(store) == [] and f"round {ROUNDS} is not evaluated" in told and "secret" not in told
