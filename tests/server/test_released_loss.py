"""Noisy losses at the coordinator: their mean and its error, and when a run gets no further."""

import numpy as np
import pytest

from fedpeft.privacy import PrivacyPlan
from fedpeft.privacy.loss_share import LossShare
from fedpeft.protocol.messages import TrainReply
from fedpeft_server.rounds.released_loss import is_stuck, loss_event

PLAN = PrivacyPlan(0.2, 1.0, 1.0, 64, 4, 8, 1e-5, loss=LossShare(0.2, 10.0))


def reply(loss):
    return TrainReply(1, 1, 0.0, 1.0, 1, bytes(32), [loss])


def events(losses, error):
    return [{"loss": loss, "standard_error": error} for loss in losses]


def test_the_mean_over_the_nodes_has_their_error_over_the_root_of_their_number():
    event = loss_event(3, {"b": reply(2.0), "a": reply(4.0)}, PLAN)
    assert (event["event"], event["round"], event["loss"]) == ("training", 3, 3.0)
    assert event["nodes"] == {"a": 4.0, "b": 2.0} and list(event["nodes"]) == ["a", "b"]
    alone = np.sqrt(1.04) * 10 / 2 / 0.2 / 64 / np.sqrt(4)
    assert event["standard_error"] == pytest.approx(alone / np.sqrt(2))
    assert "noisy" in event["text"]


def test_a_run_goes_on_while_the_loss_falls_and_ends_when_it_does_not():
    falling = list(np.linspace(9, 1, 30))
    assert not any(is_stuck(events(falling[:end], 0.1), 3) for end in range(31))
    flat = [*np.linspace(9, 1, 9), *[1.0] * 12]
    ends = [end for end in range(len(flat) + 1) if is_stuck(events(flat[:end], 0.1), 3)]
    assert ends[0] == 9 + 2 + 3  # the last smoothed loss that is lower is that of rounds 9 to 11


def test_one_lucky_draw_does_not_end_a_run_that_still_falls():
    """A single low loss is smoothed over; no less than twice the patience is waited."""
    flat = [5.0] * 12
    assert [is_stuck(events(flat[:end], 0.1), 4) for end in (4, 7, 8)] == [False, False, True]


def test_noise_alone_is_no_fall():
    """Of a flat loss with its stated noise nearly all runs end within a few windows."""
    rng = np.random.default_rng(0)
    ended = [is_stuck(events(rng.normal(3.0, 0.5, 30), 0.5), 5) for _ in range(200)]
    assert np.mean(ended) > 0.9
