"""A real deployment on one machine: the installed command, real processes, real TLS, a scenario's records."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Manager, Service, processes, until

from fedpeft.flower import free_port

FEDPEFT = str(Path(sys.executable).parent / "fedpeft")
LOOPBACK = "127.0.0.1"
DATA = {"data.samples": 48, "data.test_samples": 16}
SMALL: dict[str, Any] = {
    "base.threads": 1,
    "data.max_length": 64,
    "federation.local_steps": 1,
    "federation.batch_size": 4,
    "federation.deadline": 15.0,
    "audit.enabled": "false",
}
"""The embedded base with rounds so short that what is measured is not training."""
ENDED = ("done", "failed", "stopped")
PATIENCE = 120.0
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME")


@dataclass
class Node:
    """One organisation of the deployment.

    Attributes:
        name: as enrolled.
        home: its folder.
        records: its data file.
        address: what it connects to; the coordinator, or a proxy before it.
        service: its process.
    """

    name: str
    home: Path
    records: Path
    address: str
    service: Service | None = None


@dataclass
class Deployment:
    """A coordinator and its nodes under one folder.

    Attributes:
        root: holds everything.
        host: address of the coordinator.
        manager: of the long-lived processes.
        nodes: by name.
    """

    root: Path
    host: str = LOOPBACK
    manager: Manager = field(default_factory=Manager)
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])

    @property
    def marker(self) -> str:
        """What every process of this deployment has in its environment."""
        return f"FEDPEFT_HOME={self.root / 'home'}"

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.root / "home" / "server" / "coordinator"

    @property
    def settings(self) -> dict[str, Any]:
        """``server.json``."""
        return json.loads((self.server / "server.json").read_text())

    @property
    def address(self) -> str:
        """Of the coordinator's public port."""
        return f"{self.host}:{self.settings['port']}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: nothing of this process' own, but where programs and caches are."""
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        own = {"FEDPEFT_HOME": str(self.root / "home"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return kept | own | {"HF_HUB_OFFLINE": "1"}

    def cli(self, *arguments: str, check: bool = True) -> Any:
        """Run a command with ``--json``; what it printed."""
        done = subprocess.run(
            [FEDPEFT, *arguments, "--json"], env=self.environment, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode:
            raise AssertionError(f"fedpeft {' '.join(arguments)}: {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout else {}

    @property
    def scenario(self) -> Path:
        """A file that sets nothing but the base; what runs differ in is given beside it."""
        path = self.root / "scenario.toml"
        if not path.exists():
            path.write_text('[base]\nmodel = "embedded"\n')
        return path

    @property
    def held_out(self) -> Path:
        """The records that belong to no node."""
        return self.root / "data" / "test.jsonl"

    def begin(self) -> None:
        """Make the coordinator and start its service."""
        ports = [str(free_port()) for _ in range(4)]
        names = ("--port", "--enrolment-port", "--inside-port", "--metrics-port")
        pairs = [text for pair in zip(names, ports, strict=True) for text in pair]
        self.cli("server", "init", "--host", self.host, *pairs)
        self.up()

    def up(self) -> None:
        """Start the coordinator's service and wait until its link listens."""
        command = [FEDPEFT, "server", "up"]
        self.manager.add(Service("server", command, self.environment, self.root / "server.log"))
        until(lambda: self.told("registrations in line"), PATIENCE, "the service and its link are up")

    def told(self, event: str) -> list[dict[str, Any]]:
        """Lines of the service's log."""
        log = self.server / "log.jsonl"
        lines = map(json.loads, log.read_text().splitlines()) if log.exists() else iter(())
        return [line for line in lines if line["event"] == event]

    def write_data(self, names: Sequence[str], **overrides: Any) -> dict[str, Path]:
        """Record files of organisations, by name of the node."""
        folder = self.root / "data"
        settings = {"federation.nodes": len(names), **DATA, **overrides}
        self.cli("data", "write", str(folder), "--scenario", str(self.scenario), *_set(settings))
        files = sorted(path for path in folder.iterdir() if path != self.held_out)
        return dict(zip(names, files, strict=False))

    def join(
        self,
        name: str,
        records: Path,
        address: str | None = None,
        place: Path | None = None,
        *enroll: str,
    ) -> Node:
        """Make a node, enrol it with further options and approve it; its process is started by `run`."""
        made = place or self.root / "home" / "node" / name
        facts = self.cli("node", "init", name, "--policy", "research-pilot", "--home", str(made))
        node = Node(name, Path(facts["home"]), records, address or self.address)
        home = ("--home", str(node.home))
        self.cli("node", "data", "add", "records", str(records), "--lineage", f"{name}-data", *home)
        token = self.cli("server", "enroll", name, *enroll)["token"]
        command = [FEDPEFT, "node", "join", node.address, "--token", token, *home]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE) as joining:
            until(lambda: self._state(name) == "waiting", PATIENCE, f"{name} asks to be let in")
            self.cli("server", "approve", name, "--fingerprint", facts["fingerprint"])
            assert joining.wait(PATIENCE) == 0, f"{name} does not join"
        self.nodes[name] = node
        return node

    def _state(self, name: str) -> str:
        path = self.server / "nodes.json"
        return json.loads(path.read_text()).get(name, {}).get("state", "") if path.exists() else ""

    def run(
        self, node: Node, command: Sequence[str] = (), prefix: Sequence[str] = (), **extra: str
    ) -> Service:
        """Start a node's process, by default the installed command.

        Args:
            node: which.
            command: another program in its place.
            prefix: what starts the command, as ``ip netns exec``.
            extra: of its environment.
        """
        own = [FEDPEFT, "node", "run", "--home", str(node.home), "--poll", "0.2"]
        log, environment = self.root / f"{node.name}.log", self.environment | extra
        node.service = Service(node.name, [*prefix, *(command or own)], environment, log)
        return self.manager.add(node.service)

    def submit(self, name: str, settings: Mapping[str, Any], *options: str) -> Path:
        """Hand a run in; its directory."""
        chosen = {"federation.nodes": len(self.nodes), **SMALL, **settings}
        command = ("server", "submit", str(self.scenario), "--name", name, *options)
        return Path(self.cli(*command, *_set(chosen))["path"])

    def child(self, part: str) -> int:
        """Pid of the link (``link``) or of a run's process (``run``), 0 while there is none."""
        found = [
            pid
            for pid, command in self.processes().items()
            if f"fedpeft_server.service.{part}_process " in command
        ]
        return max(found, default=0)

    def processes(self) -> dict[int, str]:
        """All processes of this deployment."""
        return processes(self.marker)

    def close(self) -> dict[int, str]:
        """End everything; what was left over, which is killed."""
        self.manager.close()
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


def status_of(run: Path) -> dict[str, Any]:
    """``status.json`` of a run."""
    return json.loads((run / "status.json").read_text())


def events_of(run: Path) -> list[dict[str, Any]]:
    """Whole lines of ``metrics.jsonl``."""
    path, found = run / "metrics.jsonl", []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """Events of rounds."""
    return [event for event in events_of(run) if event["event"] == "round"]


def await_end(
    run: Path, seconds: float = PATIENCE, watch: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Wait until a run has ended, looking at something meanwhile; its status."""

    def ended() -> Any:
        watch()
        return (status := status_of(run))["state"] in ENDED and status

    return until(ended, seconds, f"run {run.name} ends")


def _set(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        yield "--set"
        yield f"{key}={value}"
