"""Contract tests: the private names of the installed Flower behave as `fedpeft.flower` needs."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flwr.app import Message, MessageType
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedpeft import flower
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import TrainReply

REPLY = TrainReply(round=3, steps=2, train_s=0.5, epsilon=0.0, ledger_entry=1, ledger=b"")


def _client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["home"] == "bad":
            raise ValueError("a patient's name")
        _, blob = unpack(message, TrainReply, 100)
        return Message(pack(REPLY, blob[::-1]), reply_to=message)

    return app


def _server(got: dict, nodes: int = 2) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid, context):
        end = time.time() + 30
        while len(ids := sorted(grid.get_node_ids())) < nodes and time.time() < end:
            time.sleep(0.05)
        messages = [Message(pack(REPLY, b"abc"), n, MessageType.TRAIN, ttl=60, group_id="1") for n in ids]
        waiting = list(grid.push_messages(messages))
        while waiting and time.time() < end:
            for reply in grid.pull_messages(waiting):
                waiting.remove(reply.metadata.reply_to_message_id)
                got[reply.metadata.reply_to_message_id] = reply
            time.sleep(0.02)
        got["config"] = dict(context.run_config)

    return app


def test_local_grid_serialises_and_hides_the_text_of_errors():
    got: dict = {}
    homes = [{"home": "good"}, {"home": "bad"}]
    flower.run_local(_server(got), _client(), homes, {"run-dir": "x"})
    assert got.pop("config") == {"run-dir": "x"}
    causes = [reply.error.reason for reply in got.values() if reply.has_error()]
    assert causes == ["ValueError"]
    blobs = [unpack(reply, TrainReply, 3)[1] for reply in got.values() if not reply.has_error()]
    assert blobs == [b"cba"]


def test_expired_messages_are_not_worked_on():
    seen = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen.append(context.node_id)
        time.sleep(0.3)
        return Message(pack(REPLY), reply_to=message)

    grid = flower.LocalGrid(app, [{}, {}])
    first, second = sorted(grid.get_node_ids())
    late = [Message(pack(REPLY), node, MessageType.TRAIN, ttl=0.1, group_id="1") for node in (first, second)]
    replies = list(grid.send_and_receive(late))
    grid.close()
    assert seen == [first]
    assert [reply.error.code for reply in replies if reply.has_error()] == [flower.EXPIRED]


def test_server_app_errors_reach_the_caller():
    app = ServerApp()

    @app.main()
    def main(grid, context):
        raise RuntimeError("quorum")

    with pytest.raises(RuntimeError, match="quorum"):
        flower.run_local(app, _client(), [{}], {})


def test_thin_app_is_the_same_everywhere_and_is_valid():
    from flwr.common.config import get_fab_config, get_metadata_from_config

    bundle, digest = flower.thin_app()
    assert flower.thin_app() == (bundle, digest)
    assert get_metadata_from_config(get_fab_config(bundle))[0] == "fedpeft/fedpeft"
    assert len(bundle) < 2000


NODE = """
import sys
from fedpeft import flower
sys.path.insert(0, {folder!r})
from test_flower import _client
connection = flower.Connection(sys.argv[1], poll=0.05)
flower.serve_node(connection, _client(), {{"home": "good"}}, frozenset(sys.argv[2:]))
"""


def test_superlink_in_a_thread_with_pinned_nodes(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    got: dict = {}
    code = NODE.format(folder=str(Path(__file__).parent))
    with flower.superlink() as link:
        allowed = [[flower.thin_app()[1]], ["0" * 64]]
        nodes = [subprocess.Popen([sys.executable, "-c", code, link.address, *hashes]) for hashes in allowed]
        try:
            flower.run_server_app(link, _server(got), {"run-dir": "y"})
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait(10)
    assert got.pop("config") == {"run-dir": "y"}
    assert len(got) == 2
    refused = [reply.error for reply in got.values() if reply.has_error()]
    assert [(error.code, error.reason) for error in refused] == [(flower.REFUSED, "AppNotAllowed")]
    assert not any(thread.name == "fedpeft-ports" for thread in threading.enumerate())
