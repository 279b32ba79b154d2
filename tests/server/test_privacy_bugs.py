"""Known privacy bugs in the coordinator that no other test would notice; docs/privacy-bugs.md lists them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.config.models import FederationConfig
from fedpeft.exchange import Context, Layout, PublicTernary
from fedpeft.exchange.support import PublicSupport
from fedpeft.privacy.grid import Grid
from fedpeft.privacy.plan import PrivacyPlan
from fedpeft.protocol.messages import COORDINATOR
from fedpeft_server.rounds.round_loop import Coordinator
from fedpeft_server.rounds.secure_aggregation import SecureSums
from fedpeft_server.rounds.update_channel import CentralNoiseChannel, PlainChannel

SIZE = 40
LAYOUT = Layout.of({"w": np.zeros(SIZE)})


@pytest.mark.parametrize("nodes", [3, 7])
def test_fewer_nodes_in_a_noisy_sum_do_not_change_its_divisor(nodes):
    """The sensitivity that is accounted for is that of a sum over a public number of nodes."""
    grid = Grid(size=SIZE, steps_per_clip=100.0, least_nodes=3)
    plan = PrivacyPlan(1.0, 2.0, 0.5, 7, 1, 5, 1e-5, "node", "distributed", grid=grid)
    config = SimpleNamespace(exchange=SimpleNamespace(secure=SimpleNamespace(bits=16)))
    setup = SimpleNamespace(initial=SimpleNamespace(layout=LAYOUT), config=config)
    total = np.arange(SIZE, dtype=np.int64)
    opened = SimpleNamespace(result=lambda bound: (total, nodes), participants=("node",) * nodes)
    codec = PublicTernary(PublicSupport(1.0)).at(Context(bytes(16), 1, COORDINATOR, bytes(32), "up"), None)
    found = SecureSums(setup, [])._noisy_mean(opened, codec, plan, 1)
    np.testing.assert_allclose(found.dense(), total * 0.5 / 100.0 / 7, rtol=1e-6)


def drawn(privacy, seed):
    """Who is drawn of 80 nodes in round 1, by the coordinator's own way of sampling."""
    federation = FederationConfig(selection="poisson", participation=0.5)
    config = SimpleNamespace(run=SimpleNamespace(seed=seed), federation=federation)
    setup = SimpleNamespace(config=config)
    account = SimpleNamespace(plan=privacy)
    channel = CentralNoiseChannel(setup, account) if privacy else PlainChannel(setup)
    roster = SimpleNamespace(keys={f"n{index:02d}": b"" for index in range(80)})
    return Coordinator._sample(SimpleNamespace(setup=setup, roster=roster, channel=channel), 1)


def test_the_coins_of_a_private_draw_are_no_function_of_the_public_seed():
    """Who knows the seed would know who was drawn: no coin is secret, and none amplifies."""
    private = PrivacyPlan(0.5, 1.0, 1.0, 40, 1, 5, 1e-5, "node", "central")
    draws = [drawn(plan, seed) for plan in (private, None) for seed in (7, 7, 8)]
    assert len({tuple(names) for names in draws}) == 6
    marked = replace(private, reproducible=True)
    assert drawn(marked, 7) == drawn(marked, 7) != drawn(marked, 8)
