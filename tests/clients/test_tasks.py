"""What one node does and refuses to do."""

import json
import shutil

import numpy as np
import pytest

from fedpeft.errors import ConfigError, FederationError, PrivacyError
from fedpeft.trust import Signer
from fedpeft_clients.home import create_home, open_home
from fedpeft_clients.tasks import greet, train

PRIVATE = {"privacy": {"unit": "record", "noise_multiplier": 1.0, "sampling_probability": 0.3, "budget": 9.0}}


def test_hello_reports_what_the_node_computed(organisation):
    home, coordinator = organisation()
    reply = greet(home, coordinator.hello())
    assert (reply.name, reply.rank, reply.versions) == ("clinic", 2, [])
    assert len(reply.key) == len(reply.layout) == len(reply.state) == 32
    assert reply.run == coordinator.hello().run


def test_another_coordinator_is_not_trusted(organisation):
    home, coordinator = organisation()
    greet(home, coordinator.hello())
    hello = coordinator.hello()
    stranger = type(hello)(hello.protocol, hello.run, Signer.from_seed(b"stranger").public)
    with pytest.raises(FederationError, match="another coordinator"):
        greet(home, stranger)


def test_a_repeated_order_sends_the_stored_bytes_and_spends_nothing(organisation):
    from fedpeft.privacy import Ledger

    home, coordinator = organisation(**PRIVATE)
    task = coordinator.first_task()
    reply, envelope = train(home, task, b"")
    spent = Ledger(home.ledger).spent(home.lineage)
    assert train(home, task, b"") == (reply, envelope)
    assert (home.outbox / "r01.fpd").read_bytes() == envelope
    shutil.rmtree(home.outbox)
    assert train(home, task, b"") == (reply, envelope)
    assert (home.outbox / "r01.fpd").read_bytes() == envelope
    assert Ledger(home.ledger).spent(home.lineage) == spent > 0
    assert reply.epsilon == pytest.approx(spent, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "3 steps are asked for, 2 are agreed"),
        ({"round": 4}, "round 4 is not one of the 3 agreed rounds"),
        ({"lr": 1.0}, "learning rate 1 exceeds"),
        ({"expires": 1.0}, "has expired"),
        ({"state": bytes(32)}, "not the one announced"),
        ({"broadcast": "delta", "round": 2, "lr": 1e-4}, "has 0 bytes"),
        ({"broadcast": "surprise"}, "unknown kind"),
    ],
)
def test_orders_beyond_the_agreement_are_refused_before_data_are_opened(organisation, change, message):
    from fedpeft.errors import FedPeftError

    home, coordinator = organisation()
    task = coordinator.first_task(**change)
    home.train.unlink()
    with pytest.raises(FedPeftError, match=message):
        train(home, task, b"")
    assert not home.ledger.exists()


def test_the_ledger_is_written_before_the_records_are_opened(organisation):
    from fedpeft.privacy import Ledger

    home, coordinator = organisation(**PRIVATE)
    task = coordinator.first_task()
    home.train.unlink()
    with pytest.raises(FileNotFoundError):
        train(home, task, b"")
    assert Ledger(home.ledger).spent(home.lineage) > 0


def test_a_spent_budget_refuses_the_round(organisation):
    home, coordinator = organisation(privacy={**PRIVATE["privacy"], "budget": 0.1})
    with pytest.raises(PrivacyError, match="budget"):
        train(home, coordinator.first_task(), b"")


@pytest.mark.parametrize("federation_round_two", [PRIVATE], indirect=True)
def test_a_rolled_back_ledger_is_noticed(federation_round_two):
    home, task, blob = federation_round_two
    home.ledger.unlink()
    for extra in home.path.glob("ledger.sqlite-*"):
        extra.unlink()
    with pytest.raises(PrivacyError, match="rolled back"):
        train(home, task, blob)


def test_old_answers_are_sent_again_from_the_outbox(federation_round_two):
    home, task, blob = federation_round_two
    reply, envelope = train(home, task, blob)
    shutil.rmtree(home.states)
    with (home.outbox / "answers.jsonl").open("ab") as index:
        index.write(b'{"torn')
    assert train(home, task, blob) == (reply, envelope)


@pytest.fixture
def federation_round_two(organisation, request):
    """A node after round 1, and the order for round 2."""
    from dataclasses import replace

    from fedpeft.exchange import Context, ExchangePlan, Update, seal
    from fedpeft.protocol import COORDINATOR, NO_STATE, run_id, state_digest
    from fedpeft_clients.desk import Desk

    home, coordinator = organisation(**getattr(request, "param", {}))
    first = coordinator.first_task()
    train(home, first, b"")
    desk = Desk.of(home)
    values = desk.attached.initial() + np.float32(0.01)
    update = Update(desk.attached.layout, values, 2, 0)
    context = Context(run_id(home.config), 2, COORDINATOR, NO_STATE, "down")
    blob = seal(update, ExchangePlan((), "dense-fp32"), context, coordinator.signer)
    state = state_digest(desk.attached.layout, values)
    return home, replace(first, round=2, lr=1e-4, broadcast="full", state=state), blob


def test_a_whole_state_is_trained_from(federation_round_two):
    home, task, blob = federation_round_two
    reply, envelope = train(home, task, blob)
    assert reply.round == 2
    assert reply.ledger_entry == 2
    assert len(envelope) > 64


def test_changed_broadcast_bytes_are_refused(federation_round_two):
    from fedpeft.errors import EnvelopeError

    home, task, blob = federation_round_two
    with pytest.raises(EnvelopeError, match="does not verify"):
        train(home, task, blob[:-1] + bytes([blob[-1] ^ 1]))


@pytest.mark.parametrize("privacy", [{}, PRIVATE])
def test_taps_show_every_stage_and_the_truth(organisation, privacy):
    from fedpeft_clients.desk import Desk

    home, coordinator = organisation(tapped=True, **privacy)
    train(home, coordinator.first_task(), b"")
    folder = home.path / "taps" / "r01"
    meta, truth = (json.loads((folder / name).read_text()) for name in ("meta.json", "truth.json"))
    expected = ["gradient", "update", "add_residual", "sparsify", "ternarise", "keep_residual", "envelope"]
    assert meta["stages"] == expected
    size = Desk.of(home).attached.layout.size
    for stage in expected:
        with np.load(folder / f"{stage}.npz") as stored:
            assert stored["values"].shape == (size,)
    assert all(row in truth["all_token_ids"] for row in truth["token_ids"])
    if not privacy:
        assert len(truth["token_ids"]) == 4


def test_an_untapped_home_writes_no_taps(organisation):
    home, coordinator = organisation()
    train(home, coordinator.first_task(), b"")
    assert not (home.path / "taps").exists()


def test_homes_are_validated(tmp_path, organisation):
    home, _ = organisation()
    assert open_home(home.path) == home
    with pytest.raises(ConfigError, match=r"no node\.json"):
        open_home(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="letters, digits"):
        create_home(tmp_path / "x", "../x", [], home.config)
    (home.path / "node.json").write_text('{"name": "clinic"}')
    with pytest.raises(ConfigError, match=r"not a valid node\.json"):
        open_home(home.path)
