"""Known privacy bugs in the coordinator that no other test would notice; docs/privacy-bugs.md lists them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fedpeft.exchange import Context, Layout, PublicTernary
from fedpeft.exchange.support import PublicSupport
from fedpeft.privacy.plan import Grid, PrivacyPlan
from fedpeft.protocol import COORDINATOR
from fedpeft_server.secure import SecureSums

SIZE = 40
LAYOUT = Layout.of({"w": np.zeros(SIZE)})


@pytest.mark.parametrize("nodes", [3, 7])
def test_fewer_nodes_in_a_noisy_sum_do_not_change_its_divisor(nodes):
    """The sensitivity that is accounted for is that of a sum over a public number of nodes."""
    grid = Grid(size=SIZE, steps_per_clip=100.0, least_nodes=3)
    plan = PrivacyPlan(1.0, 2.0, 0.5, 7, 1, 5, 1e-5, "node", "distributed", grid=grid)
    config = SimpleNamespace(exchange=SimpleNamespace(secure=SimpleNamespace(bits=16)))
    setup = SimpleNamespace(privacy=plan, initial=SimpleNamespace(layout=LAYOUT), config=config)
    total = np.arange(SIZE, dtype=np.int64)
    opened = SimpleNamespace(result=lambda bound: (total, nodes), participants=("node",) * nodes)
    codec = PublicTernary(PublicSupport(1.0)).at(Context(bytes(16), 1, COORDINATOR, bytes(32), "up"), None)
    found = SecureSums(setup, [])._noisy_mean(opened, codec, plan, grid)
    np.testing.assert_allclose(found.dense(), total * 0.5 / 100.0 / 7, rtol=1e-6)
