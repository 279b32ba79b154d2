"""The link process: Flower's SuperLink with its two listeners, until it is stopped.

``python -m fedpeft_server.service.link_process SERVER_HOME``; the supervisor starts it, and
starts it again when it dies.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from fedpeft.errors import FedPeftError
from fedpeft.terminal import clean_output
from fedpeft_server.service.child_process import begin_service, end_with_parent
from fedpeft_server.service.server_home import ServerHome
from fedpeft_server.service.stock_nodes import BundleGate


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM, or until the supervisor that started this process is gone."""
    home, stop = ServerHome.open(Path(arguments[0])), threading.Event()
    begin_service(stop, home.path / "flower")
    end_with_parent(stop)
    from fedpeft.flower import LinkSettings, hush, serve_link

    hush()
    settings, folder, gate = home.settings, home.path, BundleGate(home)
    serve_link(
        LinkSettings(
            folder=folder,
            inside_port=settings.inside_port,
            host=settings.bind,
            port=settings.port,
            certificate=folder / "server.crt",
            key=folder / "server.key",
            ca=folder / "ca.crt",
            secret=home.secret.read_bytes(),
            handout=gate,
            stock=gate.is_stock,
        ),
        stop,
    )
    return 0


if __name__ == "__main__":
    with clean_output():
        try:
            sys.exit(main(sys.argv[1:]))
        except FedPeftError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
