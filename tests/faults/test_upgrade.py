"""A rolling upgrade, a node before the coordinator; and versions that share nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import PATIENCE, Deployment, await_end, rounds_of, status_of
from processes import Service, until

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
ROOMS = ("", "kernels", "attacks", "clients", "server", "simulations")
EARLY, LATE = "bank", "clinic"
ROUNDS = 12
SETTINGS = {"federation.rounds": ROUNDS, "federation.quorum": 2, "federation.deadline": 60.0}
CHANGES = {
    "fedpeft/_version.py": ('__version__ = "', '__version__ = "1.'),
    "fedpeft/protocol/messages.py": ("PROTOCOL, OLDEST = 4, 4", "PROTOCOL, OLDEST = 5, {oldest}"),
    "fedpeft/config/load.py": (
        "ADDED: tuple[tuple[str, str, Any], ...] = ()",
        'ADDED = (("federation", "courtesy", False),)',
    ),
    "fedpeft/config/models.py": (
        "    nodes: int = Field(",
        '    courtesy: bool = Field(default=False, description="new")\n    nodes: int = Field(',
    ),
    "fedpeft_server/service/server_home.py": (
        "SETTINGS, STATUS = Format(), Format()",
        'SETTINGS, STATUS = Format((lambda facts: facts | {{"motto": "new"}},)), Format()',
    ),
    "fedpeft_clients/governance/organisation.py": (
        "ORGANISATION, DATA, GRANT = Format(), Format(), Format()",
        'ORGANISATION, DATA, GRANT = Format(), Format(), Format((lambda facts: facts | {{"region": "x"}},))',
    ),
}
FIELDS = {
    "fedpeft_server/service/server_home.py": (
        "    metrics_port: int\n",
        "    metrics_port: int\n    motto: str\n",
    ),
    "fedpeft_clients/governance/organisation.py": ("    issued: int\n", "    issued: int\n    region: str\n"),
}


def next_version(folder, oldest=4):
    """The packages one version ahead: another protocol, a setting and two state files with one field more."""
    for room in ROOMS:
        name = f"fedpeft_{room}" if room else "fedpeft"
        shutil.copytree(ROOT / room / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (old, new) in [*CHANGES.items(), *FIELDS.items()]:
        text = (folder / file).read_text()
        assert old in text, file
        (folder / file).write_text(text.replace(old, new.format(oldest=oldest), 1))
    joining = folder / "fedpeft_clients/governance/joining.py"
    joining.write_text(joining.read_text().replace("answer.issued, folder)", 'answer.issued, "x", folder)'))
    return folder


@pytest.fixture
def deployment(tmp_path):
    """Two organisations and a coordinator of this version, and the next version beside it."""
    made = Deployment(tmp_path)
    made.begin()
    for name, file in made.write_data((EARLY, LATE)).items():
        made.run(made.join(name, file))
    yield made
    made.close()


def upgrade(made, service, packages):
    """End a process and start the same with other packages."""
    was = made.manager.services[service]
    made.manager.end(service)
    command = [sys.executable, "-P", "-m", "fedpeft", *was.command[1:]]
    made.manager.add(Service(service, command, was.environment | {"PYTHONPATH": str(packages)}, was.log))


def names(event):
    return sorted(event["ledger"])


def test_a_node_first_and_then_the_coordinator_while_a_run_goes_on(deployment, tmp_path):
    packages, settings = next_version(tmp_path / "next"), deployment.server / "server.json"
    before = settings.read_bytes()
    run = deployment.submit("spring", SETTINGS)
    until(lambda: len(rounds_of(run)) >= 1, 2 * PATIENCE, "a round")
    upgrade(deployment, EARLY, packages)
    behind = len(rounds_of(run))
    until(lambda: len(rounds_of(run)) >= behind + 2, 2 * PATIENCE, "rounds with a node that is ahead")
    upgrade(deployment, "server", packages)
    behind = len(rounds_of(run))
    assert await_end(run, 4 * PATIENCE)["state"] == "done"
    rounds = rounds_of(run)
    assert [event["round"] for event in rounds] == list(range(1, ROUNDS + 1)), "none twice, none lost"
    assert all(names(event) == [EARLY, LATE] for event in rounds) and behind < ROUNDS
    assert json.loads(settings.read_text())["motto"] == "new"
    assert settings.with_name("server.json.format1").read_bytes() == before
    (grant,) = deployment.nodes[EARLY].home.glob("coordinators/*/grant.json")
    assert json.loads(grant.read_text())["region"] == "x" and grant.with_name("grant.json.format1").exists()
    charged = {name: [e["ledger"][name][0] for e in rounds if name in e["ledger"]] for name in (EARLY, LATE)}
    assert all(numbers == sorted(set(numbers)) for numbers in charged.values()), "no ledger began anew"

    deployment.manager.end("server")
    kept = settings.read_bytes()
    old = subprocess.run(
        [sys.executable, "-m", "fedpeft", "server", "up"],
        env=deployment.environment,
        capture_output=True,
        text=True,
    )
    assert old.returncode and old.stderr.count("\n") == 1 and settings.read_bytes() == kept
    assert "a newer version wrote it; upgrade fedpeft on this machine; nothing was changed" in old.stderr


def test_versions_that_share_no_protocol_say_which_to_upgrade(deployment, tmp_path):
    packages = next_version(tmp_path / "next", oldest=5)
    upgrade(deployment, "server", packages)
    upgrade(deployment, EARLY, packages)
    run = deployment.submit("summer", SETTINGS | {"federation.rounds": 2, "federation.quorum": 2})

    def cause():
        path = run / "contacts.json"
        return path.exists() and json.loads(path.read_text()).get(LATE, {}).get("cause")

    until(lambda: "upgrade that node" in (cause() or ""), 2 * PATIENCE, "the operator is told")
    said = (tmp_path / f"{LATE}.log").read_text()
    assert "the coordinator speaks protocols 5 to 5, this node 4 to 4: upgrade this node" in said
    upgrade(deployment, LATE, packages)
    assert await_end(run, 4 * PATIENCE)["state"] == "done"
    assert status_of(run)["state"] == "done" and LATE in names(rounds_of(run)[-1])
