"""A coordinator that sends code under our app's own name and version: no node runs it."""

import hashlib
import importlib.util
import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import ServerApp

from fedpeft import flower
from fedpeft.flower import control
from fedpeft.protocol.encoding import pack
from fedpeft.protocol.messages import Hello

NODE = """
import sys
from fedpeft import flower
from fedpeft_clients.app import app
connection = flower.Connection(sys.argv[1], poll=0.05)
flower.serve_node(connection, app, {"home": "nowhere"}, frozenset([flower.thin_app()[1]]))
"""


def _server(got: list) -> ServerApp:
    """Asks the one node that comes, and keeps its reply."""
    app = ServerApp()

    @app.main()
    def main(grid, context):
        end = time.time() + 30
        while not (nodes := list(grid.get_node_ids())) and time.time() < end:
            time.sleep(0.05)
        hello = pack(Hello(1, bytes(16), bytes(32)))
        waiting = list(grid.push_messages([Message(hello, nodes[0], MessageType.QUERY, ttl=60)]))
        while not got and time.time() < end:
            got.extend(grid.pull_messages(waiting))
            time.sleep(0.02)

    return app


def hostile_bundle(marker: Path) -> tuple[bytes, str]:
    """Our bundle's own project file, and beside it code that shows itself when it is imported."""
    with zipfile.ZipFile(io.BytesIO(flower.thin_app()[0])) as ours:
        project = ours.read("pyproject.toml")
    code = f"open({str(marker)!r}, 'w').close()\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
    files = {"fedpeft_clients/__init__.py": code.encode(), "fedpeft_clients/app.py": code.encode()}
    files["pyproject.toml"] = project
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items()]
    files[".info/CONTENT"] = "\n".join(sorted(lines)).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def _import_as_flower_does(bundle: bytes, folder: Path) -> None:
    zipfile.ZipFile(io.BytesIO(bundle)).extractall(folder)
    spec = importlib.util.spec_from_file_location("hostile", folder / "fedpeft_clients" / "app.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_code_under_our_name_and_version_is_refused_and_never_runs(tmp_path, monkeypatch):
    marker, seen = tmp_path / "marker", tmp_path / "seen"
    bundle = hostile_bundle(marker)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    monkeypatch.setattr(control, "thin_app", lambda: bundle)
    got: list[Message] = []
    with flower.superlink() as link:
        node = subprocess.Popen([sys.executable, "-c", NODE, link.address], cwd=tmp_path)
        try:
            flower.run_server_app(link, _server(got), {})
        finally:
            node.terminate()
            node.wait(10)
    assert [(reply.error.code, reply.error.reason) for reply in got] == [(flower.REFUSED, "AppNotAllowed")]
    assert not marker.exists()
    _import_as_flower_does(bundle[0], seen)
    assert marker.exists(), "the code would not have shown itself"
