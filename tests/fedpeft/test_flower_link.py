"""The fenced SuperLink: who gets in, what an outsider finds, what survives its death."""

import contextlib
import shutil
import threading

import httpx
import pytest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.serverapp import ServerApp

from fedpeft import flower
from fedpeft.errors import ConfigError, FederationError
from fedpeft.flower.fleet import Fleet
from fedpeft.flower.serverapp import _take_task
from fedpeft.trust import new_transport_key, public_line
from tests.fedpeft.flower_world import SECRET, World, answers, make_certificates, rounds_app, tls, wait_for


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One link for all tests of this file that leave it alive."""
    made = World(tmp_path_factory.mktemp("world"))
    made.start_link()
    yield made
    made.close()


OUTSIDER = [
    ("list the nodes", "POST", "/v1/control/list-nodes"),
    ("register a node", "POST", "/v1/control/register-node"),
    ("unregister a node", "POST", "/v1/control/unregister-node"),
    ("start a run", "POST", "/v1/control/start-run"),
    ("stop a run", "POST", "/v1/control/stop-run"),
    ("list the runs", "POST", "/v1/control/list-runs"),
    ("read the logs", "POST", "/v1/control/stream-logs"),
    ("take the task", "POST", "/v1/runtime/acquire-task"),
    ("list nodes as a ServerApp", "POST", "/v1/runtime/get-nodes"),
    ("push messages as a ServerApp", "POST", "/v1/runtime/push-messages"),
    ("pull messages as a ServerApp", "POST", "/v1/runtime/pull-messages"),
    ("pull an object as a ServerApp", "POST", "/v1/runtime/pull-object"),
    ("start an automation", "POST", "/v1/runtime/start-automation"),
    ("call a model", "POST", "/v1/responses"),
    ("the OpenAPI page", "GET", "/docs"),
    ("the OpenAPI page's helper", "GET", "/docs/oauth2-redirect"),
    ("the OpenAPI schema", "GET", "/openapi.json"),
    ("another documentation page", "GET", "/redoc"),
    ("the root", "GET", "/"),
    ("a way round the fence", "POST", "/v1/fleet/../control/list-nodes"),
    ("a way round, encoded", "POST", "/v1/fleet/%2e%2e/control/list-nodes"),
    ("a way round, encoded slash", "POST", "/v1/fleet/..%2fcontrol/list-nodes"),
    ("a doubled slash", "POST", "//v1/control/list-nodes"),
    ("another case", "POST", "/V1/CONTROL/list-nodes"),
    ("the Fleet API by another method", "GET", "/v1/fleet/pull-messages"),
    ("the authority's certificate overwritten", "PUT", "/ca.crt"),
]


@pytest.mark.parametrize(("what", "method", "path"), OUTSIDER, ids=[row[0] for row in OUTSIDER])
def test_an_outsider_finds_nothing_but_the_fleet_api(world, what, method, path):
    with httpx.Client(verify=tls(world.folder / "ca.crt")) as client:
        request = client.build_request(method, f"https://{world.outside}/")
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = client.send(request)
    assert answer.status_code == 404
    assert len(answer.content) < 50


FLEET = [
    "activate-node",
    "register-node",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
]


@pytest.mark.parametrize("call", FLEET)
def test_the_fleet_api_refuses_who_signs_nothing(world, call):
    headers = {"content-type": "application/protobuf"}
    url = f"https://{world.outside}/v1/fleet/{call}"
    answer = httpx.post(url, content=b"", headers=headers, verify=tls(world.folder / "ca.crt"))
    assert answer.status_code in (401, 415, 422)


def test_the_app_bundle_is_handed_to_whom_the_coordinator_allows(world):
    """A node that asks for it runs what is in it: a stock Flower node."""
    line, (bundle, name), app = world.enrol("stock"), flower.thin_app(), ServerApp()
    files = [(world.folder / name).read_bytes() for name in ("ca.crt", "stock.key")]

    @app.main()
    def main(grid, context):
        asked = f"{context.run_id} {line.decode()}\n"
        with contextlib.closing(Fleet(flower.Connection(world.outside, *files))) as fleet:
            fleet.open()
            ask = GetFabRequest(node=fleet._me(), hash_str=name, run_id=context.run_id)
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                fleet._client.GetFab(ask)
            (world.folder / "generous").touch()
            assert fleet._client.GetFab(ask).fab.content == bundle
            ask.hash_str = "other"
            with pytest.raises(httpx.HTTPStatusError):
                fleet._client.GetFab(ask)
        assert (world.folder / "bundles").read_text() == 2 * asked, "what Flower refuses is not noted"

    flower.run_server_app(world.link, app, {})
    assert (world.folder / "bundles").exists()


def test_a_request_that_is_too_long_is_not_read(world):
    """A sender that does not listen may find the connection closed before it reads why."""
    with httpx.Client(verify=tls(world.folder / "ca.crt")) as client:
        url = f"https://{world.outside}/v1/fleet/push-object"
        with contextlib.suppress(httpx.TransportError):
            assert client.post(url, content=bytes(2**24 + 1)).status_code == 413
        assert client.post(url, content=iter([b"of unknown length"])).status_code == 413


def test_health_and_the_authority_are_public(world):
    get = httpx.get(f"https://{world.outside}/ca.crt", verify=tls(world.folder / "ca.crt"))
    assert get.content == (world.folder / "ca.crt").read_bytes()
    assert answers(world.outside, world.folder / "ca.crt")


def test_a_task_needs_the_secret(world):
    with pytest.raises(FederationError, match="does not know"):
        _take_task(flower.SuperLink(world.inside, b"x" * 32))
    assert _take_task(world.link) == ""


def test_a_node_is_registered_and_shut_out_once_and_for_all(world):
    line = public_line(new_transport_key())
    flower.unregister_node(world.link, line)
    flower.register_node(world.link, line)
    flower.register_node(world.link, line)
    flower.unregister_node(world.link, line)
    flower.unregister_node(world.link, line)
    with pytest.raises(FederationError, match="revoked here and cannot come back"):
        flower.register_node(world.link, line)


def test_only_an_openssh_line_is_registered(world):
    with pytest.raises(ConfigError, match="OpenSSH"):
        flower.register_node(world.link, b"no key")


def test_ending_a_run_that_is_not_there_is_harmless(world):
    flower.end_run(world.link, 5)


def test_a_taken_port_is_said_in_one_line(world, tmp_path):
    make_certificates(tmp_path)
    files = [tmp_path / name for name in ("server.crt", "server.key", "ca.crt")]
    settings = flower.LinkSettings(tmp_path, world.inside_port, "127.0.0.1", world.port, *files, SECRET)
    with pytest.raises(FederationError, match="cannot listen on"):
        flower.serve_link(settings, threading.Event())


def test_a_certificate_that_is_missing_is_said_in_one_line(tmp_path):
    files = [tmp_path / name for name in ("server.crt", "server.key", "ca.crt")]
    settings = flower.LinkSettings(
        tmp_path, flower.free_port(), "127.0.0.1", flower.free_port(), *files, SECRET
    )
    with pytest.raises(ConfigError, match="make them again"):
        flower.serve_link(settings, threading.Event())


def test_a_renewed_certificate_is_served_without_a_restart(world):
    make_certificates(world.folder, "new-")
    shutil.copy(world.folder / "new-server.key", world.folder / "server.key")
    shutil.copy(world.folder / "new-server.crt", world.folder / "server.crt")
    wait_for(lambda: answers(world.outside, world.folder / "new-ca.crt"))
    shutil.copy(world.folder / "new-ca.crt", world.folder / "ca.crt")


@pytest.mark.slow
def test_the_run_goes_on_when_the_link_is_killed_and_comes_back(tmp_path):
    world, got = World(tmp_path), {}
    try:
        world.start_link()
        keys = {world.enrol("a"), world.enrol("b")}
        for name in ("a", "b"):
            world.start_node(name)
        run = threading.Thread(
            target=flower.run_server_app, args=(world.link, rounds_app(12, 2, got), {}), daemon=True
        )
        run.start()
        for number in (3, 7):
            wait_for(lambda number=number: number in got)
            world.kill_link()
            world.start_link()
        run.join(90)
        assert set(got["keys"].values()) == keys
        answered = [word for number in range(1, 13) for word in got[number]]
        assert len(answered) == 24
        lost = [word for word in answered if isinstance(word, tuple)]
        assert len(lost) <= 4
        assert all(code in (flower.EXPIRED, flower.NODE_LOST, flower.UNREADABLE) for code, _ in lost)
    finally:
        world.close()


@pytest.mark.slow
def test_the_next_serverapp_ends_the_run_of_the_one_that_died(tmp_path):
    world, first, second = World(tmp_path), {}, {}
    try:
        world.start_link()
        world.enrol("a")
        world.start_node("a")
        memory = tmp_path / "run.number"
        flower.run_server_app(world.link, rounds_app(1, 1, first), {}, memory)
        left = flower.control.start_run(world.link)
        memory.write_text(str(left))
        flower.run_server_app(world.link, rounds_app(1, 1, second), {}, memory)
        assert second[1] == ["round-1 by a"]
        assert int(memory.read_text()) == second["run"]
        assert len({first["run"], second["run"], left}) == 3
    finally:
        world.close()
