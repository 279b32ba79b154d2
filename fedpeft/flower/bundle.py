"""The app bundle that names our apps and holds no code."""

from __future__ import annotations

import hashlib
import io
import zipfile


def thin_app() -> tuple[bytes, str]:
    """A Flower app bundle that holds only names, and its SHA-256: both apps come from the installed wheel.

    Its hash is the same in all versions: which of them work together the protocol says (`fedpeft.protocol`).
    Stored without compression and with fixed dates, so that all machines compute the same hash.
    """
    project = (
        b'[project]\nname = "fedpeft"\nversion = "1.0.0"\ndependencies = []\n'
        b'[tool.flwr.app]\npublisher = "fedpeft"\n'
        b'[tool.flwr.app.components]\nserverapp = "fedpeft_server.app:app"\n'
        b'clientapp = "fedpeft_clients.app:app"\n'
        b"[tool.flwr.app.config]\n"
    )
    manifest = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{len(project) * 8}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in (("pyproject.toml", project), (".info/CONTENT", manifest)):
            bundle.writestr(zipfile.ZipInfo(name), content)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()
