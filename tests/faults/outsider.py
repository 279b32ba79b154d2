"""An outsider without a key on the public port, for minutes, beside a federation that works.

``python tests/faults/outsider.py [--minutes 10]`` prints memory and log of the link, and the times of rounds,
before and meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from deployment import Deployment, rounds_of
from measures import pair
from processes import resident_kib, until

CONNECTIONS, GARBAGE = 2000, 100_000_000
WORKERS = 40
OWN = "127.0.0.1"
"""The address of the nodes: half of what the outsider sends comes from there, the rest from many others."""
PUSH = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Type: application/protobuf\r\n"
PIECE = 2**16


@dataclass
class Outsider:
    """Makes connections of all kinds until it is told to stop.

    Attributes:
        port: the public port.
        seconds: over which the connections are spread.
        made, sent: connections, and bytes that the system took for them.
    """

    port: int
    seconds: float
    made: int = 0
    sent: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Go on for the whole time, and then until there were enough connections and bytes."""
        workers = [threading.Thread(target=self._work, args=(seed,), daemon=True) for seed in range(WORKERS)]
        for worker in workers:
            worker.start()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end or self.made < CONNECTIONS or self.sent < GARBAGE:
            time.sleep(1)
        self.stop.set()
        for worker in workers:
            worker.join(30)

    def _work(self, seed: int) -> None:
        source = random.Random(seed)
        kinds = (_silent, _noise, _half, _body, _header, _slow)
        while not self.stop.is_set():
            far = f"127.1.{source.randrange(4)}.{source.randrange(2, 250)}"
            address = OWN if source.random() < 0.5 else far
            with contextlib.suppress(OSError), self._connected(address) as raw:
                source.choice(kinds)(raw, source, self._count)
            self.stop.wait(self.seconds * WORKERS / CONNECTIONS / 4 * source.random())

    def _connected(self, address: str) -> socket.socket:
        raw = socket.create_connection((OWN, self.port), 10, (address, 0))
        with self._lock:
            self.made += 1
        return raw

    def _count(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        with self._lock:
            self.sent += len(data)


def _secure(raw: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(raw)


def _wait(connection: socket.socket) -> None:
    """Hold the connection until it is ended, at most for half a minute."""
    connection.settimeout(30)
    while connection.recv(PIECE):
        pass


def _silent(raw: socket.socket, source: random.Random, send: Any) -> None:
    _wait(raw)


def _noise(raw: socket.socket, source: random.Random, send: Any) -> None:
    send(raw, source.randbytes(PIECE))
    _wait(raw)


def _half(raw: socket.socket, source: random.Random, send: Any) -> None:
    with _secure(raw) as connection:
        send(connection, PUSH[: source.randrange(len(PUSH))])
        _wait(connection)


def _body(raw: socket.socket, source: random.Random, send: Any) -> None:
    with _secure(raw) as connection:
        send(connection, PUSH + b"Content-Length: %d\r\n\r\n" % 2**24)
        for _ in range(2**24 // PIECE):
            send(connection, source.randbytes(PIECE))


def _header(raw: socket.socket, source: random.Random, send: Any) -> None:
    with _secure(raw) as connection:
        send(connection, PUSH + b"X: ")
        for _ in range(64):
            send(connection, b"\x1bA" * (PIECE // 2))


def _slow(raw: socket.socket, source: random.Random, send: Any) -> None:
    with _secure(raw) as connection:
        for byte in PUSH:
            send(connection, bytes([byte]))
            time.sleep(0.5)


def soak(root: Path, minutes: float, calm_rounds: int = 8) -> dict[str, Any]:
    """A run of two nodes: some rounds in peace, then with the outsider; what became of link and rounds."""
    with pair(root) as deployment:
        run = deployment.submit("soak", {"federation.rounds": 1000, "federation.deadline": 60.0})
        until(lambda: len(rounds_of(run)) >= calm_rounds + 2, 600, "the first rounds")
        link, before = _link(deployment), _memory(deployment)
        calm = _seconds(run, 2)
        outsider, peak = Outsider(int(deployment.settings["port"]), 60 * minutes), [before]
        log, thread = _logged(deployment), threading.Thread(target=outsider.run)
        thread.start()
        while thread.is_alive():
            peak.append(_memory(deployment))
            time.sleep(1)
        beside = _seconds(run, 2 + len(calm))
        assert _link(deployment) == link, "the link died"
        deployment.cli("server", "stop", "soak")
        return {
            "connections": outsider.made,
            "garbage_mb": outsider.sent / 1e6,
            "idle_mib": before,
            "worst_mib": max(peak),
            "log_bytes": _logged(deployment) - log,
            "rounds": len(beside),
            "calm_s": statistics.median(calm),
            "beside_s": statistics.median(beside),
            "worst_s": max(beside),
        }


def _link(deployment: Deployment) -> int:
    return int(deployment.told("link started")[-1]["pid"])


def _memory(deployment: Deployment) -> float:
    """MiB of the link."""
    return resident_kib(_link(deployment)) / 1024


def _logged(deployment: Deployment) -> int:
    return sum(path.stat().st_size for path in deployment.server.glob("link*.log"))


def _seconds(run: Path, first: int) -> list[float]:
    """What rounds took, from a round on."""
    return [event["train_s"] + event["overhead_s"] for event in rounds_of(run)[first:]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for name, value in soak(Path(folder), options.minutes).items():
            print(f"{name:12} {value:.2f}" if isinstance(value, float) else f"{name:12} {value}")
