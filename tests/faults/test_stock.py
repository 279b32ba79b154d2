"""A stock Flower SuperNode: refused unless the run takes such nodes, and marked where it does."""

import sys
from pathlib import Path

import pytest
from deployment import PATIENCE, Deployment, await_end, rounds_of
from processes import Service

from fedpeft.flower import free_port

pytestmark = pytest.mark.faults

OWN, STOCK = "bank", "clinic"
SETTINGS = {"federation.rounds": 2, "federation.deadline": 45}


@pytest.fixture
def deployment(tmp_path):
    """Two organisations that agree to stock nodes; one has fedpeft's node, the other Flower's."""
    made = Deployment(tmp_path)
    made.begin()
    for name, file in made.write_data((OWN, STOCK)).items():
        policy = (
            made.join(name, file, None, None, *(["--stock"] if name == STOCK else [])).home / "policy.toml"
        )
        text = policy.read_text()
        assert "stock_nodes = false" in text
        policy.write_text(text.replace("stock_nodes = false", "stock_nodes = true"))
    made.run(made.nodes[OWN])
    _start_stock(made)
    yield made
    made.close()


def _start_stock(made):
    home, programs = made.nodes[STOCK].home, Path(sys.executable).parent
    (grant,) = home.glob("coordinators/*")
    options = {
        "--superlink": made.address,
        "--root-certificates": grant / "ca.crt",
        "--auth-supernode-private-key": home / "transport.key",
        "--node-config": f'organisation="{home}" coordinator="{grant.name}"',
        "--port": free_port(),
    }
    command = [str(programs / "flower-supernode"), *(str(text) for pair in options.items() for text in pair)]
    own = {"PATH": f"{programs}:{made.environment['PATH']}", "FLWR_HOME": str(made.root / "flower")}
    made.manager.add(Service(STOCK, command, made.environment | own, made.root / f"{STOCK}.log"))


def view(made, name):
    return made.cli("server", "status", name)["runs"][0]


def test_a_stock_node_takes_part_only_where_the_run_says_so(deployment):
    refusing = deployment.submit("refusing", SETTINGS | {"federation.quorum": 1})
    assert await_end(refusing, 4 * PATIENCE)["state"] == "done"
    seen = view(deployment, "refusing")
    assert [list(event["ledger"]) for event in rounds_of(refusing)] == [[OWN], [OWN]]
    assert "federation.stock_nodes" in seen["nodes"][STOCK]["cause"] and seen["stock"] == []
    taking = deployment.submit(
        "taking", SETTINGS | {"federation.quorum": 2, "federation.stock_nodes": "true"}
    )
    assert await_end(taking, 4 * PATIENCE)["state"] == "done"
    assert [sorted(event["ledger"]) for event in rounds_of(taking)] == [[OWN, STOCK], [OWN, STOCK]]
    seen = view(deployment, "taking")
    assert seen["stock"] == [STOCK] and seen["nodes"][STOCK]["cause"] == ""
