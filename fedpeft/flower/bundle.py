"""The app bundle that names our apps and holds no code."""

from __future__ import annotations

import hashlib
import io
import zipfile

from fedpeft._version import __version__


def thin_app() -> tuple[bytes, str]:
    """A Flower app bundle that holds only names, and its SHA-256: both apps come from the installed wheel.

    Stored without compression and with fixed dates, so that all machines compute the same hash.
    """
    project = (
        f'[project]\nname = "fedpeft"\nversion = "{__version__}"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "fedpeft"\n'
        '[tool.flwr.app.components]\nserverapp = "fedpeft_server.app:app"\n'
        'clientapp = "fedpeft_clients.app:app"\n'
        "[tool.flwr.app.config]\n"
    ).encode()
    manifest = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in (("pyproject.toml", project), (".info/CONTENT", manifest)):
            bundle.writestr(zipfile.ZipInfo(name), content)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()
