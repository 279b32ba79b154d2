"""What operator and monitoring see of a run, read from a written run directory."""

import io
import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest
from rich.console import Console

from fedpeft.config import build_config, dump_config
from fedpeft.flower import free_port
from fedpeft.trust import Signer, new_transport_key, public_line
from fedpeft_server.service.contacts import Contacts, read_contacts
from fedpeft_server.service.metrics import MOST_CAUSES, exposing
from fedpeft_server.service.node_registry import Node, Registry
from fedpeft_server.service.run_view import ago, read_view, render
from fedpeft_server.service.server_home import RunStatus, ServerHome, Settings, read_status, write_status
from fedpeft_server.service.stock_nodes import BundleGate

ROUND = {
    "event": "round",
    "replies": 1,
    "bytes_up": 1000,
    "bytes_down": 500,
    "total_s": 2.5,
    "epsilon": {"clinic": 1.25},
    "ledger": {"clinic": [3, "00"]},
    "refused": {"school": "norm 9 exceeds 2"},
}


@pytest.fixture
def home(tmp_path):
    ports = [free_port() for _ in range(4)]
    made = ServerHome.create(tmp_path / "server", Settings("north", "127.0.0.1", "127.0.0.1", *ports))
    entries = {
        name: Node(
            public_line(new_transport_key()).decode(), Signer.generate().public.hex(), name, "enrolled", 1.0
        )
        for name in ("clinic", "school", "harbour")
    }
    Registry(made)._write("nodes.json", entries)
    return made


@pytest.fixture
def run(home):
    folder = home.runs / "first"
    folder.mkdir()
    config = build_config({"federation": {"rounds": 4, "nodes": 3, "stock_nodes": True}})
    (folder / "config.toml").write_text(dump_config(config))
    write_status(folder, RunStatus("running", restarts=2, flower_run=7, since=1.0))
    events = [
        {"event": "hello", "nodes": ["clinic", "school"], "refused": {}},
        {**ROUND, "round": 1, "refused": {}, "ledger": {"clinic": [1, ""], "school": [1, ""]}},
        {**ROUND, "round": 2},
        {"event": "evaluation", "arm": "base", "round": 0, "loss": 2.5, "accuracy": None},
        {"event": "evaluation", "arm": "federated", "round": 1, "loss": 1.5, "accuracy": None},
        {"event": "training", "round": 2, "loss": 3.25, "standard_error": 0.125, "nodes": {}},
    ]
    school = Registry(home).nodes()["school"].transport
    assert BundleGate(home)(7, school) is True and BundleGate(home)(8, school) is False
    contacts = Contacts(folder)
    for event in events:
        contacts.report(event)
    contacts.seen(["clinic"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def text_of(renderable):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_view_of_a_run(home, run):
    view = read_view(home, run)
    assert (view.rounds, view.planned, view.bytes_up, view.bytes_down) == (2, 4, 2000, 1000)
    assert view.loss == 1.5 and view.base_loss == 2.5 and view.epsilon == 1.25 and view.round_seconds == 2.5
    assert view.refused == {"norm 9 exceeds 2": 1}
    assert view.nodes["clinic"].round == 2 and view.nodes["school"].round == 1
    assert view.nodes["school"].cause == "norm 9 exceeds 2" and view.nodes["harbour"].seen == 0.0
    assert json.loads(json.dumps(view.as_json()))["status"]["flower_run"] == 7


def test_the_table_tells_all_of_it(home, run):
    text = text_of(render(read_view(home, run), time.time() + 30))
    for word in (
        "first",
        "running",
        "round 2 of 4",
        "2 kB up",
        "1 kB down",
        "loss 1.5",
        "base 2.5",
        "training loss 3.2500 ± 0.1250 of noise",
        "epsilon 1.25",
        "2 restarts",
    ):
        assert word in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "30 s ago" in lines["clinic"] and "round 2" in lines["clinic"]
    assert "runs coordinator code; norm 9 exceeds 2" in lines["school"]
    assert lines["harbour"].split()[1:] == ["-", "-", "-"]


def test_a_stock_node_that_the_run_does_not_take_is_told_so(home, run):
    (run / "config.toml").write_text(dump_config(build_config({"federation": {"rounds": 4, "nodes": 3}})))
    harbour = Registry(home).nodes()["harbour"].transport
    assert BundleGate(home)(7, harbour) is False
    view = read_view(home, run)
    assert "federation.stock_nodes" in view.nodes["harbour"].cause and view.stock == ("school",)


def test_a_revoked_node_is_shown_as_such(home, run):
    Registry(home).revoke("school")
    Registry(home).revoke("harbour")
    view = read_view(home, run)
    assert view.nodes["school"].cause == "revoked" and "harbour" not in view.nodes


def test_a_cause_cannot_draw_on_the_screen(home, run):
    write_status(run, read_status(run).to("failed", "[red]no[/red] quorum"))
    assert "failed: [red]no[/red] quorum" in text_of(render(read_view(home, run), time.time()))


def test_a_new_run_has_a_view(home, run):
    (run / "metrics.jsonl").unlink()
    (run / "contacts.json").unlink()
    view = read_view(home, run)
    assert view.rounds == 0 and view.epsilon is None and sorted(view.nodes) == ["clinic", "harbour", "school"]
    assert "no privacy claim" in text_of(render(view, time.time()))


def test_contacts_survive_and_waiting_has_causes(run):
    contacts = Contacts(run)
    contacts.report(
        {"event": "waiting", "round": 2, "nodes": ["school"], "missing": {"clinic": "not online"}}
    )
    found = read_contacts(run)
    assert found["clinic"].cause == "not online" and found["clinic"].round == 2
    assert found["school"].cause == ""


def test_ago_is_for_people():
    assert [ago(then, 1e6) for then in (0.0, 1e6 - 5, 1e6 - 200, 1e6 - 9000, 1e6 - 200_000)] == [
        "-",
        "5 s ago",
        "3 min ago",
        "2 h ago",
        "2 d ago",
    ]


def scrape(home):
    with urllib.request.urlopen(
        f"http://127.0.0.1:{home.settings.metrics_port}/metrics", timeout=5
    ) as answer:
        return answer.read().decode()


def test_metrics_tell_what_the_files_hold(home, run):
    with exposing(home, {"link": 3, "runner": 1}):
        text = scrape(home)
        for line in (
            'fedpeft_process_restarts_total{process="link"} 3.0',
            'fedpeft_nodes{state="enrolled"} 3.0',
            'fedpeft_run_state{run="first",state="running"} 1.0',
            'fedpeft_run_state{run="first",state="done"} 0.0',
            'fedpeft_rounds_done{run="first"} 2.0',
            'fedpeft_round_seconds{run="first"} 2.5',
            'fedpeft_nodes_online{run="first"} 1.0',
            'fedpeft_epsilon{run="first"} 1.25',
            'fedpeft_run_restarts_total{run="first"} 2.0',
            'fedpeft_bytes_total{direction="up",run="first"} 2000.0',
            'fedpeft_replies_refused_total{cause="norm 9 exceeds 2",run="first"} 1.0',
        ):
            assert line in text.splitlines(), line
        write_status(run, read_status(run).to("done"))
        assert 'fedpeft_run_state{run="first",state="done"} 1.0' in scrape(home)


def test_metrics_survive_a_damaged_run_and_many_causes(home, run):
    broken = home.runs / "broken"
    broken.mkdir()
    (broken / "config.toml").write_text("")
    (broken / "status.json").write_text("{")
    events = [{**ROUND, "round": n, "refused": {"x": f"cause {n}"}} for n in range(1, 4 * MOST_CAUSES)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    with exposing(home, {}):
        text = scrape(home)
    assert text.count("fedpeft_replies_refused_total{") == MOST_CAUSES + 1
    assert 'run="broken"' not in text


EVIL = "\x1b[2J\x1b]0;pwn\x07[/x][link=https://e.org]x[/link]\r\nok"


@pytest.mark.parametrize("command", [["status", "first"], ["status"], ["doctor"]])
def test_what_a_node_wrote_does_nothing_on_the_operators_screen(home, run, command):
    write_status(run, RunStatus("failed", cause=EVIL, since=1.0))
    event = {**ROUND, "round": 3, "refused": {"school": EVIL, "clinic": "[/bold]"}}
    Contacts(run).report(event)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "fedpeft", "server", *command, "--home", str(home.path)],
        capture_output=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    shown = done.stdout + done.stderr
    assert b"Traceback" not in shown and not {b"\x1b", b"\x07", b"\r"} & {bytes([b]) for b in shown}
    if command != ["doctor"]:
        assert done.returncode == 0 and b"[/x]" in shown
