"""Runs of different configs in one process: each answers as if it had the process to itself."""

from dataclasses import replace

import pytest

from fedpeft.runstore import read_json
from fedpeft_clients.process_cache import ProcessCache
from fedpeft_clients.rounds.handlers import greet, train
from fedpeft_clients.rounds.node_context import NodeContext

SEEDED = {"unit": "record", "noise_multiplier": 1.0, "sampling_probability": 0.3, "max_noise_to_signal": 99.0}
RUNS = {
    "clinic": {"privacy": {**SEEDED, "randomness": "seeded"}},
    "bank": {
        "adapter": {"method": "ia3"},
        "exchange": {"up": {"codec": "sign", "error_feedback": True}},
        "run": {"seed": 3},
    },
    "school": {"adapter": {"rank": 4, "aggregation": "naive"}, "federation": {"optimiser": "sgd", "lr": 0.5}},
}


@pytest.fixture
def runs(organisation):
    return {name: organisation(name, **settings) for name, settings in RUNS.items()}


class Process:
    """A process of its own: nothing is held of an earlier one but the files of the homes."""

    def __init__(self):
        from fedpeft.adapters import detach
        from fedpeft.bases.load import forget_base

        detach()
        forget_base()
        self.cache = ProcessCache()

    def hello(self, run):
        """What a node says of itself."""
        home, coordinator = run
        return greet(NodeContext(home, self.cache), coordinator.hello())

    def round(self, run, number):
        """The sealed update of a round that starts from the agreed values, and what is told of it."""
        home, coordinator = run
        if number == 1:
            order = (coordinator.first_task(expires=2e9), b"")
        else:
            order = coordinator.whole(NodeContext(home, self.cache).attached.initial(), round=number)
        reply, envelope = train(NodeContext(home, self.cache), *order)
        return replace(reply, train_s=0.0, ledger=bytes(32)), envelope


def test_runs_that_are_answered_in_turn_give_the_bytes_of_runs_that_have_the_process_alone(
    runs, organisation, tmp_path
):
    together = Process()
    hellos = {name: together.hello(run) for name, run in runs.items()}
    answers = {(name, number): together.round(runs[name], number) for number in (1, 2) for name in runs}
    assert len({envelope for _, envelope in answers.values()}) == len(answers)
    for name, (home, _) in runs.items():
        forgotten = ("state", "outbox", "ledger.sqlite")
        for path in sorted(home.path.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(home.path).parts[0].startswith(forgotten):
                path.unlink()
        alone = Process()
        assert alone.hello(runs[name]) == hellos[name]
        assert [alone.round(runs[name], number) for number in (1, 2)] == [
            answers[name, number] for number in (1, 2)
        ]


def test_a_context_holds_what_its_own_config_says(runs):
    nodes = {name: NodeContext(home, ProcessCache()) for name, (home, _) in runs.items()}
    assert nodes["clinic"].plan.local is not None and nodes["bank"].plan.privacy is None
    assert nodes["bank"].plan.up.codec.name == "sign"
    assert (
        len({node.run for node in nodes.values()})
        == len({node.signer.public for node in nodes.values()})
        == 3
    )
    assert all(read_json(node.home.path / "node.json", {})["name"] == name for name, node in nodes.items())


def test_a_ledger_is_opened_once_and_anew_when_its_file_is_gone(runs):
    home, cache = runs["bank"][0], ProcessCache()
    ledger = NodeContext(home, cache).ledger
    assert NodeContext(home, cache).ledger is ledger
    assert NodeContext(home, ProcessCache()).ledger is not ledger
    for path in home.path.glob("ledger.sqlite*"):
        path.unlink()
    assert NodeContext(home, cache).ledger is not ledger
