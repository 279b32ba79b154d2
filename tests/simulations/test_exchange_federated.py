"""Whole federations over every codec, with nodes that miss rounds."""

import json

import pytest

from fedpeft.errors import ConfigError

SOME = {"nodes": 4, "rounds": 5, "participation": 0.5}


def rounds_of(prepared):
    events = [event for event in prepared.go() if event["event"] == "round"]
    assert not any(event["refused"] for event in events)
    return events


@pytest.mark.parametrize(
    ("direction", "written"),
    [
        ({"codec": "sign"}, {"sign"}),
        ({"codec": "masked-sign", "density": 0.3}, {"masked-sign"}),
        ({"codec": "masked-sign", "density": 0.3, "support": "released"}, {"masked-sign"}),
        ({"codec": "dead-zone"}, {"dead-zone"}),
        ({"codec": "stochastic-ternary", "error_feedback": False}, {"ternary"}),
        ({"codec": "auto"}, {"ternary", "dead-zone", "masked-sign"}),
        ({"codec": "int8"}, {"int8"}),
        ({"codec": "dense-bf16"}, {"dense-bf16"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_codec_carries_a_federation_in_which_nodes_miss_rounds(federation, direction, written):
    down = {**direction, "support": "seed"}
    events = rounds_of(federation(federation=SOME, exchange={"up": direction, "down": down}))
    assert all(set(event["codecs"].values()) <= written for event in events)
    assert all(len(event["codecs"]) == 2 for event in events)
    assert all(event["applied"] for event in events)


def test_cached_broadcasts_change_the_bytes_and_nothing_else(federation):
    thin = {"density": 0.02}
    runs = {}
    for rounds in (64, 0):
        exchange = {"cache_rounds": rounds, "up": thin, "down": thin}
        prepared = federation(f"cache-{rounds}", federation=SOME, exchange=exchange)
        runs[rounds] = prepared, sum(event["bytes_down"] for event in rounds_of(prepared))
    (cached, fewer), (whole, more) = runs[64], runs[0]
    assert cached.final["values"].tobytes() == whole.final["values"].tobytes()
    assert fewer < more
    assert not list(cached.run.glob("broadcasts/*-full.fpd"))
    assert list(whole.run.glob("broadcasts/*-full.fpd"))


def test_without_feedback_the_coordinator_forgets_what_a_broadcast_does_not_carry(federation):
    thin = {"density": 0.02}
    results = []
    for feedback in (True, False):
        exchange = {"up": thin, "down": {**thin, "error_feedback": feedback}}
        prepared = federation(f"feedback-{feedback}", federation={"rounds": 3}, exchange=exchange)
        prepared.go()
        results.append(prepared.final["values"])
    assert (results[0] != 0).sum() > (results[1] != 0).sum()


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        ({"up": {"codec": "stochastic-ternary"}}, "error_feedback = false"),
        ({"down": {"codec": "masked-sign", "support": "released"}}, "exchange.down.support = 'seed'"),
    ],
)
def test_settings_that_cannot_work_are_refused(federation, exchange, message):
    with pytest.raises(ConfigError, match=message):
        federation(exchange=exchange)


def test_no_name_of_a_node_stands_in_the_way_of_a_broadcast(federation):
    """Names that files of the coordinator have, or had; with nodes that miss rounds and catch up."""
    prepared = federation(federation=SOME | {"rounds": 12})
    taken = ("broadcast", "broadcast-full", "r02", "aggregate.npz")
    for home, name in zip(prepared.homes, taken, strict=True):
        facts = json.loads((home / "node.json").read_text())
        (home / "node.json").write_text(json.dumps(facts | {"name": name}))
    events = rounds_of(prepared)
    assert len(events) == 12 and all(event["applied"] for event in events)
    assert {name for event in events for name in event["ledger"]} <= set(taken)
