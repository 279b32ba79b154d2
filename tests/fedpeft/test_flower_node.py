"""A node against every fault of the network and of its SuperLink, each part a real process."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedpeft import flower
from fedpeft.errors import ConfigError
from fedpeft.flower.fleet import Fleet
from fedpeft.trust import new_transport_key
from tests.fedpeft.flower_world import Proxy, World, make_certificates, rounds_app, wait_for

NOT_ADMITTED = "not enrolled there or was revoked, or the node's last process ended less than a minute ago"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    make_certificates(made.folder, "other-")
    (made.folder / "stranger.key").write_bytes(new_transport_key())
    made.start_link()
    yield made
    made.close()


@pytest.fixture
def end(world):
    """Nodes of one test end with it."""
    yield
    for process in world.nodes.values():
        if process.poll() is None:
            process.terminate()
    for process in world.nodes.values():
        process.wait(20)
    world.nodes.clear()


def _run(world, rounds, nodes, got, **options):
    flower.run_server_app(world.link, rounds_app(rounds, nodes, got, **options), {})


SLOW = pytest.mark.slow
KEYLESS = "admits enrolled keys only, and this node was started without a key"
WHY = [
    pytest.param("keyless", {"key": None}, KEYLESS, marks=SLOW),
    pytest.param("stranger", {}, NOT_ADMITTED),
    pytest.param("distrusts", {"key": "stranger.key", "ca": "other-ca.crt"}, "not signed by the authority"),
    pytest.param("elsewhere", {"key": "stranger.key", "port": "none"}, "cannot be reached", marks=SLOW),
    pytest.param("misnamed", {"key": "stranger.key", "port": "name"}, "not made out to this", marks=SLOW),
    pytest.param("plain", {"key": "stranger.key", "port": "inside"}, "does not speak TLS", marks=SLOW),
]


@pytest.mark.parametrize(("name", "options", "why"), WHY, ids=[row.values[0] for row in WHY])
def test_a_node_that_is_not_let_in_says_why_in_one_line_and_keeps_trying(world, end, name, options, why):
    options = dict(options)
    ports = {"inside": world.inside, "name": f"localhost:{world.port}", "none": "127.0.0.1:9"}
    if port := options.pop("port", None):
        options["address"] = ports[port]
    process = world.start_node(name, **options)
    wait_for(lambda: why in world.said(name))
    time.sleep(0.5)
    assert process.poll() is None
    assert len(world.said(name).splitlines()) == 1


def test_a_key_or_an_authority_that_cannot_be_read_is_refused_at_once():
    with pytest.raises(ConfigError, match="transport key"):
        Fleet(flower.Connection("127.0.0.1:9", None, b"no key"))
    with pytest.raises(ConfigError, match="PEM"):
        Fleet(flower.Connection("127.0.0.1:9", b"no certificate", new_transport_key()))


@pytest.mark.slow
def test_the_gate_sees_every_reply_and_what_it_raises_leaves_as_a_name(world, end):
    got = {}
    for name, mode in (("open", "open"), ("refuses", "refuses")):
        world.enrol(name)
        world.start_node(name, gate=mode)
    _run(world, 1, 2, got)
    assert sorted(map(str, got[1])) == ["(2, 'PermissionError')", "round-1 by open"]
    assert (world.folder / "open.gate").read_text().split() == ["content"]
    assert (world.folder / "refuses.gate").read_text().split() == ["content", "PermissionError"]


@pytest.mark.slow
def test_nothing_leaves_through_a_closed_gate(world, end):
    got = {}
    world.enrol("closed")
    world.start_node("closed", gate="closed")
    _run(world, 1, 1, got, ttl=2.0)
    assert [code for code, _ in got[1]] == [flower.EXPIRED]
    assert (world.folder / "closed.gate").read_text().split() == ["content", "PermissionError"]
    assert "a reply was held back (PermissionError)" in world.said("closed")


def test_the_watchdog_ends_a_process_whose_step_hangs(world, end):
    got = {}
    world.enrol("hangs")
    process = world.start_node("hangs", longest=0.5, sleep=60)
    _run(world, 1, 1, got)
    assert process.wait(20) == os.EX_TEMPFAIL
    assert [code for code, _ in got[1]] == [flower.NODE_LOST]
    assert "took longer than 0.5 s" in world.said("hangs")


GRIPS = """
import ctypes
from fedpeft.flower import heartbeat
heartbeat._LAST_RESORT = 0.3
with heartbeat.watched(0.2, lambda: print("last act")):
    ctypes.PyDLL(None).sleep(60)
"""


def test_a_step_that_holds_the_interpreter_is_ended_too():
    """``PyDLL`` keeps the interpreter's lock, so that no watchdog in Python can run."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", GRIPS], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 1 and done.stdout == "" and "Timeout" in done.stderr
    assert time.monotonic() - begun < 50


def test_a_terminated_node_tells_the_coordinator_and_leaves_no_thread(world, end):
    world.enrol("polite")
    process = world.start_node("polite")
    wait_for(lambda: "connected" in world.said("polite"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert "ended 1" in world.said("polite")
    world.start_node("polite")
    wait_for(lambda: world.said("polite").count("connected") == 2)


@pytest.mark.slow
def test_a_killed_node_with_a_memory_is_back_at_once_and_its_message_is_reported_lost(world, end):
    got = {}
    world.enrol("killed")
    process = world.start_node("killed", memory=True, sleep=30)
    run = threading.Thread(target=_run, args=(world, 2, 1, got), daemon=True)
    run.start()
    wait_for(lambda: world.calls("killed") == ["round-1"])
    process.kill()
    process.wait()
    world.start_node("killed", memory=True)
    run.join(30)
    assert [code for code, _ in got[1]] == [flower.NODE_LOST]
    assert got[2] == ["round-2 by killed"]
    assert world.calls("killed") == ["round-1", "round-2"]


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.slow
def test_a_node_heals_from_a_status_that_a_proxy_makes_up(world, end, status):
    got, name = {}, f"behind{status}"
    world.enrol(name)
    with Proxy(world, status) as proxy:
        node = world.start_node(name, address=proxy.address)
        run = threading.Thread(target=_run, args=(world, 6, 1, got), kwargs={"ttl": 15.0}, daemon=True)
        run.start()
        for number in (1, 3):
            wait_for(lambda number=number: number in got)
            proxy.fail(4)
        run.join(120)
        node.terminate()
        node.wait(20)
    answered = [got[number][0] for number in range(1, 7)]
    lost = [word for word in answered if isinstance(word, tuple)]
    assert len(lost) <= 2
    assert f"HTTP {status}" in world.said(name) or status == 401


@pytest.mark.slow
def test_a_revoked_node_is_out_at_once_and_no_other_notices(world, end):
    keys = {name: world.enrol(name) for name in ("stays", "goes")}
    for name in keys:
        world.start_node(name)
    wait_for(lambda: all("connected" in world.said(name) for name in keys))
    flower.unregister_node(world.link, keys["goes"])
    wait_for(lambda: re.search("does not (know|admit) this node's key", world.said("goes")))
    got = {}
    _run(world, 2, 1, got)
    assert got[2] == ["round-2 by stays"]
    assert got["keys"] == {next(iter(got["keys"])): keys["stays"]}
    assert world.said("stays").splitlines() == [f"connected to {world.outside}"]
