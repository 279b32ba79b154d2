"""``python -m fedpeft_clients.service.node_process``: one organisation's node as a process of its own.

It speaks to a SuperLink, checks the hash of the run's app against its own list and runs only the installed
ClientApp; the coordinator's app bundle is never downloaded.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from fedpeft import flower
from fedpeft.errors import FedPeftError
from fedpeft.terminal import clean_output


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 0 then, or the exit code of the error that stopped the start."""
    options = _options(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        _serve(options)
    except FedPeftError as error:
        print(f"fedpeft node: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(options: argparse.Namespace) -> None:
    from fedpeft_clients.app import app
    from fedpeft_clients.rounds.run_home import open_home

    home = open_home(options.home)
    allowed = frozenset(options.app_hash or [flower.thin_app()[1]])
    certificates = options.root_certificates.read_bytes() if options.root_certificates else None
    connection = flower.Connection(options.superlink, certificates, poll=options.poll)
    flower.serve_node(connection, app, {"home": str(home.path)}, allowed)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fedpeft_clients.service.node_process", description=__doc__
    )
    parser.add_argument("--home", type=Path, required=True, help="folder with node.json")
    parser.add_argument("--superlink", required=True, help="host:port of the coordinator's Fleet API")
    parser.add_argument("--app-hash", action="append", help="allowed app; default: this version's own")
    parser.add_argument("--root-certificates", type=Path, help="CA of the coordinator; without: no TLS")
    parser.add_argument("--poll", type=float, default=0.1, help="seconds between questions for work")
    return parser.parse_args(arguments)


def _leave(number: int, frame: Any) -> None:
    sys.exit(0)


if __name__ == "__main__":
    with clean_output():
        sys.exit(main())
