"""The service keeps its processes alive: real processes, really killed."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest

from fedpeft import flower
from fedpeft.config import build_config, dump_config
from fedpeft.errors import FederationError
from fedpeft.flower import free_port
from fedpeft.trust import new_transport_key, public_line
from fedpeft_server.service.child_process import FIRST_DELAY, SUPERVISED, Child, stop_all
from fedpeft_server.service.health_probe import MOST_SILENCES, Probe
from fedpeft_server.service.key_sync import Registrar, listens
from fedpeft_server.service.node_registry import Node, Registry
from fedpeft_server.service.server_home import (
    RunStatus,
    ServerHome,
    Settings,
    is_up,
    read_status,
    write_status,
)
from fedpeft_server.service.service_log import open_log
from fedpeft_server.service.supervisor import MOST_CRASHES, Supervisor, _RunChild
from tests.fedpeft.flower_world import World

PATIENCE = 60.0


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    return ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


@pytest.fixture
def child(tmp_path):
    made = Child(("http.server", str(free_port()), "--bind", "127.0.0.1"), tmp_path / "child.log")
    yield made
    stop_all([made])


def test_a_killed_child_is_started_again(child):
    assert child.start_if_due() and not child.start_if_due()
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    assert until(child.ended) == -signal.SIGKILL
    assert child.ended() is None, "an end is told once"
    assert not child.start_if_due(), "not before its time"
    until(child.start_if_due)
    assert child.alive and child.process.pid != first and child.starts == 2


def test_back_off_grows_and_is_bounded(tmp_path):
    child, waits = Child(("fedpeft_server.no_such_module",), tmp_path / "log"), []
    for _ in range(3):
        until(child.start_if_due)
        assert until(child.ended) == 1
        waits.append(child._not_before - time.monotonic())
    stop_all([child])
    assert [round(wait / FIRST_DELAY) for wait in waits] == [1, 2, 4]
    assert "no_such_module" in child.last_line()


def test_a_child_that_does_not_obey_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("fedpeft_server.service.child_process.GRACE_SECONDS", 0.5)
    (tmp_path / "deaf.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('up', 'w').close()\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    child = Child(("deaf",), tmp_path / "log")
    child.start_if_due()
    until((tmp_path / "up").exists)
    stop_all([child])
    assert child.process.returncode == -signal.SIGKILL


def test_a_link_that_hangs_is_ended(child, monkeypatch):
    monkeypatch.setattr("fedpeft_server.service.health_probe.TIMEOUT", 0.2)
    told, probe = [], Probe(int(child.command[1]), child, lambda event, *_, **__: told.append(event))
    probe.ask()
    assert probe.silences is None, "a link that has not answered yet is starting"
    child.start_if_due()
    until(lambda: probe.ask() or probe.silences == 0)
    os.kill(child.process.pid, signal.SIGSTOP)
    for _ in range(MOST_SILENCES):
        assert not told
        probe.ask()
    assert told and until(child.ended) == -signal.SIGKILL


def submitted(home, name="first", **settings):
    folder = home.runs / name
    folder.mkdir()
    (folder / "config.toml").write_text(dump_config(build_config(settings)))
    write_status(folder, RunStatus("submitted"))
    return folder


def test_a_run_that_crashes_at_one_place_is_given_up(home, tmp_path):
    folder, supervisor = submitted(home), Supervisor(home, lambda *_, **__: None)
    (tmp_path / "log").write_text("why\n\n")
    one = _RunChild(Child(("none",), tmp_path / "log"))
    for crash in range(MOST_CRASHES - 1):
        supervisor._died(folder, one, -9)
        supervisor._died(folder, one, os.EX_TEMPFAIL)
        assert read_status(folder).state == "submitted" and one.crashes == crash + 1
    supervisor._died(folder, one, 1)
    status = read_status(folder)
    assert status.state == "failed" and "died 8 times" in status.cause
    assert status.restarts == 2 * MOST_CRASHES - 1


def test_progress_forgives_crashes(home, tmp_path):
    folder, supervisor = submitted(home), Supervisor(home, lambda *_, **__: None)
    (tmp_path / "log").write_text("why\n\n")
    one = _RunChild(Child(("none",), tmp_path / "log"))
    for number in range(2 * MOST_CRASHES):
        (folder / "checkpoints" / f"{number:04d}").mkdir(parents=True)
        supervisor._died(folder, one, 1)
    assert read_status(folder).state == "submitted"


def test_the_registrar_asks_once_who_is_registered(tmp_path, monkeypatch):
    """Each question is a connection, and the list is as long as the nodes are many."""
    made, asked, control = World(tmp_path), [], flower.control._control
    try:
        made.start_link()
        keys = [public_line(new_transport_key()).decode() for _ in range(6)]
        registrar = Registrar(SimpleNamespace(link=made.link), lambda *_, **__: None, lambda: 1)
        registrar._register(frozenset(keys[:5]), frozenset())
        monkeypatch.setattr(flower.control, "_control", lambda link: asked.append(1) or control(link))
        registrar._register(frozenset(keys[:5]), frozenset(keys[5:]))
        assert len(asked) == 1
        registrar._register(frozenset(keys[:4]), frozenset(keys[4:]))
        assert len(asked) == 3 and len(flower.node_numbers(made.link)) == 4
    finally:
        made.close()


def test_the_log_is_json_lines(tmp_path, capsys):
    with open_log(tmp_path / "log.jsonl") as tell:
        tell("started", pid=5)
        tell("broke", "error", cause="x")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "broke"]
    assert lines[0]["level"] == "info" and lines[0]["pid"] == 5 and lines[1]["level"] == "error"
    assert capsys.readouterr().err == (tmp_path / "log.jsonl").read_text()


def test_one_service_a_home(home, monkeypatch):
    from fedpeft_server.service.server_home import take_lock

    monkeypatch.setattr("fedpeft_server.service.supervisor._LOCK_SECONDS", 0.2)
    with take_lock(home.path / "up.lock"), pytest.raises(FederationError, match="one service a folder"):
        Supervisor(home, lambda *_, **__: None).run()


def test_a_run_that_was_stopped_before_it_began(home):
    folder = submitted(home)
    (folder / "stop").touch()
    command = [sys.executable, "-P", "-m", "fedpeft_server.service.run_process", str(home.path), "first"]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 0
    assert read_status(folder).state == "stopped"


def test_a_child_ends_with_its_supervisor(home):
    """Its standard input is the supervisor's end of a pipe; without a link it would wait for a minute."""
    folder = submitted(home)
    command = [sys.executable, "-P", "-m", "fedpeft_server.service.run_process", str(home.path), "first"]
    environment = {**os.environ, SUPERVISED: "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        until(lambda: read_status(folder).state == "running")
        process.stdin.close()
        assert process.wait(PATIENCE) == os.EX_TEMPFAIL
    assert read_status(folder).state == "running", "it goes on when the service is up again"


@pytest.fixture
def service(home):
    """The whole service in its own process; what it told so far."""
    command = [sys.executable, "-P", "-m", "fedpeft", "server", "up", "--home", str(home.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: listens(home.settings.inside_port))
        yield process
        process.terminate()
        assert process.wait(PATIENCE) == 0


def told(home, event):
    lines = [json.loads(line) for line in home.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def fetch(home, path):
    context = ssl.create_default_context(cafile=str(home.path / "ca.crt"))
    url = f"https://127.0.0.1:{home.settings.port}{path}"
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        return answer.read()


@pytest.mark.slow
def test_the_service_keeps_its_link_alive(home, service):
    assert is_up(home)
    assert until(lambda: told(home, "registrations in line"))[0]["enrolled"] == 0
    os.kill(told(home, "link started")[0]["pid"], signal.SIGKILL)
    assert until(lambda: told(home, "link ended"))[0]["code"] == -9
    until(lambda: len(told(home, "link started")) == 2)
    until(lambda: listens(home.settings.port))
    assert fetch(home, "/ca.crt") == (home.path / "ca.crt").read_bytes()


@pytest.mark.slow
def test_approval_and_revocation_reach_the_link_by_files_alone(home, service):
    line = public_line(new_transport_key()).decode()
    registry = Registry(home)
    registry._write("nodes.json", {"clinic": Node(line, "00" * 32, "ab-cd", "waiting", 1.0)})
    registry.approve("clinic", "abcd")
    until(lambda: [one for one in told(home, "registrations in line") if one["enrolled"] == 1])
    registry.revoke("clinic")
    until(lambda: [one for one in told(home, "registrations in line") if one["revoked"] == 1])
    assert told(home, "registration failed") == []


@pytest.mark.slow
def test_a_run_with_a_plain_fault_fails_once(home, service):
    submitted(home, base={"model": "/nowhere/model"})
    folder = home.runs / "first"
    until(lambda: read_status(folder).state == "failed")
    status = read_status(folder)
    assert "/nowhere/model" in status.cause and status.restarts == 0 and status.flower_run > 0
    until(lambda: told(home, "run ended"))
    assert len(told(home, "run process started")) == 1


@pytest.mark.slow
def test_a_killed_service_leaves_nothing_and_starts_again(home):
    command = [sys.executable, "-P", "-m", "fedpeft", "server", "up", "--home", str(home.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: listens(home.settings.inside_port))
        process.kill()
    until(lambda: not listens(home.settings.inside_port))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until(lambda: listens(home.settings.inside_port))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not is_up(home) and not listens(home.settings.inside_port)
