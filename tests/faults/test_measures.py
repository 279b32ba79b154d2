"""What a deployment must show beside surviving: parity, silence about text, upkeep that nobody notices."""

import json
import os
import signal

import numpy as np
import pytest
from deployment import SMALL, Deployment, await_end, rounds_of, status_of
from measures import digest, done, hits, memory, pair, round_overhead, setup_cost, simulated
from processes import started, until
from proxy import Proxy

pytestmark = pytest.mark.faults
SECRET = "Quasimodo-7731-Zylinderkopf"
PARITY = {
    "federation.rounds": 3,
    "federation.local_steps": 2,
    "federation.batch_size": 4,
    "data.max_length": 64,
    "data.samples": 48,
    "data.test_samples": 16,
    "base.threads": 1,
    "audit.enabled": "false",
    "federation.nodes": 2,
    "privacy.randomness": "seeded",
}


def test_deployment_and_simulation_give_the_same_adapter(tmp_path):
    """Batches follow from the seed, as terms and policies say: else nobody could draw them again."""
    with pair(tmp_path) as deployment:
        for node in deployment.nodes.values():
            allow_seeded(node.home / "policy.toml")
        run = deployment.submit("parity", PARITY)
        done(run)
        wanted = {**SMALL, **PARITY, "run.name": "parity"}
        settings = [text for key, value in wanted.items() for text in ("--set", f"{key}={value}")]
        other = simulated(deployment, settings)
    with np.load(run / "state" / "final.npz") as one, np.load(other / "state" / "final.npz") as two:
        assert one["values"].tobytes() == two["values"].tobytes()
    name = "adapter/adapter_model.safetensors"
    assert digest(run / name) == digest(other / name)


def allow_seeded(policy):
    """What an operator does who wants to repeat a run."""
    text = policy.read_text()
    assert text.count("seeded = false\n") == 1
    policy.write_text(text.replace("seeded = false\n", "seeded = true\n"))


def test_set_up_costs_a_minute_of_cpu_at_most(tmp_path):
    figures = setup_cost(tmp_path)
    print(figures)
    assert figures["beyond_training_s"] <= 60


def test_a_warm_round_adds_a_second_at_most(tmp_path):
    figures = round_overhead(tmp_path, None)
    print(figures)
    assert figures["median_s"] <= 1.0


def test_the_coordinator_grows_by_less_than_a_twentieth(tmp_path):
    for part, (early, late) in memory(tmp_path).items():
        print(f"{part}: {early:.1f} MiB after the warm-up, {late:.1f} MiB at the end")
        assert late <= 1.05 * early


def test_text_of_the_records_is_nowhere_outside_the_node(tmp_path):
    deployment, tap = Deployment(tmp_path), tmp_path / "tap"
    proxy = None
    try:
        deployment.begin()
        proxy = Proxy(deployment.host, deployment.settings["port"], deployment.server, tap)
        files = list(deployment.write_data(("a", "b")).values())
        for file in files:
            plant(file)
            deployment.run(deployment.join(file.stem, file, proxy.address))
        done(deployment.submit("planted", {"federation.rounds": 3}))
        damage(files[0])
        broken = deployment.submit("broken", {"federation.rounds": 2, "federation.quorum": 2})
        until(lambda: rounds_of(broken) or status_of(broken)["state"] == "failed", 120, "the node objects")
        (broken / "stop").touch()
        await_end(broken)
    finally:
        left = deployment.close()
        if proxy is not None:
            proxy.close()
    assert not left
    assert tap.stat().st_size > 100_000, "the tap has heard the rounds"
    assert hits("push-object", [tap]) and hits(SECRET, files), "the search finds what is there"
    logs = [path for path in tmp_path.glob("*.log")]
    assert hits(SECRET, [tap, deployment.server, *logs]) == []
    for node in deployment.nodes.values():
        books = [path for path in node.home.rglob("*") if path.is_file()]
        assert hits(SECRET, books) == []


def plant(file):
    """Put the secret into every record."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps({**one, "prompt": f"{SECRET} {one['prompt']}"}) for one in records]
    file.write_text("\n".join(lines) + "\n")


def damage(file):
    """A line that is no record, with the secret in it."""
    file.write_text(file.read_text() + f'{{"prompt": "{SECRET}", "completion": \n')


def test_renewal_and_revocation_restart_nobody(tmp_path):
    with pair(tmp_path) as deployment:
        spare = deployment.join("spare", next(iter(deployment.nodes.values())).records)
        deployment.run(spare)
        run = deployment.submit("upkeep", {"federation.rounds": 40, "federation.quorum": 2})
        until(lambda: len(rounds_of(run)) >= 2, 120, "the run is under way")
        names = [name for name in deployment.nodes if name != "spare"]
        before = who(deployment, names)
        certificate = digest(deployment.server / "server.crt")
        deployment.cli("server", "renew")
        assert digest(deployment.server / "server.crt") != certificate
        until(
            lambda: presented(deployment) == (deployment.server / "server.crt").read_text(), 30, "it is shown"
        )
        mark = len(rounds_of(run))
        until(lambda: len(rounds_of(run)) >= mark + 3, 120, "rounds go on after the renewal")
        deployment.cli("server", "revoke", "spare")
        until(lambda: "spare" not in rounds_of(run)[-1]["ledger"], 120, "the revoked node is out")
        mark = len(rounds_of(run))
        until(lambda: len(rounds_of(run)) >= mark + 3, 120, "rounds go on after the revocation")
        assert who(deployment, names) == before
        assert all(set(names) <= event["ledger"].keys() for event in rounds_of(run))
        os.kill(spare.service.pid, signal.SIGTERM)
        done(run)


def who(deployment, names):
    """Processes of nodes and coordinator: pid and start, which no other process ever shares."""
    pids = [deployment.nodes[name].service.pid for name in names]
    pids += [deployment.child("link"), deployment.child("run")]
    return [(pid, started(pid)) for pid in pids]


def presented(deployment):
    """The certificate that the public port shows now."""
    import ssl

    return ssl.get_server_certificate((deployment.host, deployment.settings["port"]))
