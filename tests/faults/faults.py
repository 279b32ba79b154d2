"""The faults: each is put upon a deployment that works, and gone again when its function returns."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from deployment import Deployment, Node
from hostile import COSTLY, order
from machine import Cable, Clock, Disk
from processes import until
from proxy import CALLS, CUTS, STATUSES, Order, Proxy

STRAGGLE = 18.0
"""Seconds, longer than a round's deadline."""
CALL_SECONDS = 20.0
ORDERED = "hostile node: "
"""Begins the name of a fault that is an order to the hostile node."""


@dataclass
class Scene:
    """What faults are put upon.

    Attributes:
        deployment: all of it.
        rng: of the plan.
        honest: names of the honest nodes.
        proxies: before each of them.
        hostile: folder of the hostile node; None if there is none.
        disks: that of the coordinator and that of a node, where they can be filled.
        cable: of the node that lives behind one.
        clock: of the node whose clock can be set.
    """

    deployment: Deployment
    rng: np.random.Generator
    honest: list[str]
    proxies: dict[str, Proxy] = field(default_factory=dict[str, Proxy])
    hostile: Path | None = None
    disks: dict[str, Disk] = field(default_factory=dict[str, Disk])
    cable: Cable | None = None
    clock: Clock | None = None

    def node(self) -> Node:
        """One of the honest nodes."""
        return self.deployment.nodes[str(self.rng.choice(self.honest))]

    def proxy(self) -> Proxy:
        """One of the proxies."""
        return self.proxies[str(self.rng.choice(sorted(self.proxies)))]


Injection = Callable[[Scene], bool]
"""Does it; whether there was anything to do it to."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault and how often a whole campaign has it."""

    name: str
    times: int
    inject: Injection


def _signal(pid: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)
            return True
    return False


def kill_node(scene: Scene) -> bool:
    service = scene.node().service
    return service is not None and _signal(service.pid, signal.SIGKILL)


def kill_child(part: str, scene: Scene) -> bool:
    return _signal(scene.deployment.child(part), signal.SIGKILL)


def kill_server(scene: Scene) -> bool:
    return _signal(scene.deployment.manager.services["server"].pid, signal.SIGKILL)


def power_cut(scene: Scene) -> bool:
    for pid in scene.deployment.processes():
        _signal(pid, signal.SIGKILL)
    return True


def _frozen(pid: int, seconds: float) -> bool:
    if not _signal(pid, signal.SIGSTOP):
        return False
    time.sleep(seconds)
    return _signal(pid, signal.SIGCONT)


def freeze_node(seconds: float, scene: Scene) -> bool:
    service = scene.node().service
    return service is not None and _frozen(service.pid, seconds)


def freeze_child(part: str, seconds: float, scene: Scene) -> bool:
    return _frozen(scene.deployment.child(part), seconds)


def spoil_call(kind: str, scene: Scene) -> bool:
    call, hits = str(scene.rng.choice(CALLS)), int(scene.rng.integers(1, 5))
    return scene.proxy().spoil(Order(kind, call, hits), CALL_SECONDS)


def cut_proxy(mode: str, seconds: float, scene: Scene) -> bool:
    scene.proxy().cut("silent" if mode == "silent" else "refuse", seconds)
    return True


def pull_cable(seconds: float, scene: Scene) -> bool:
    if scene.cable is None:
        return False
    scene.cable.pull(seconds)
    return True


def fill_disk(whose: str, seconds: float, scene: Scene) -> bool:
    if whose not in scene.disks:
        return False
    scene.disks[whose].fill(seconds)
    return True


def set_clock(offset: int, seconds: float, scene: Scene) -> bool:
    if scene.clock is None:
        return False
    scene.clock.skew(offset, seconds)
    return True


def command_hostile(kind: str, scene: Scene) -> bool:
    if scene.hostile is None:
        return False
    given = order(scene.hostile, kind)
    until(lambda: not given.exists(), 90, f"the hostile node obeys: {kind}")
    return True


def nothing(scene: Scene) -> bool:
    """For comparison: what recovery takes where there is nothing to recover from."""
    return True


CATALOGUE = (
    Fault("none (for comparison)", 6, nothing),
    Fault("SIGKILL node", 12, kill_node),
    Fault("SIGKILL ServerApp", 10, partial(kill_child, "run")),
    Fault("SIGKILL SuperLink", 10, partial(kill_child, "link")),
    Fault("SIGKILL whole service", 5, kill_server),
    Fault("SIGKILL everything (power cut)", 2, power_cut),
    Fault("node stopped for 3 s (slow)", 6, partial(freeze_node, 3.0)),
    Fault(f"node stopped for {STRAGGLE:.0f} s (straggler)", 3, partial(freeze_node, STRAGGLE)),
    Fault("ServerApp stopped for 4 s", 3, partial(freeze_child, "run", 4.0)),
    Fault("SuperLink stopped for 4 s", 4, partial(freeze_child, "link", 4.0)),
    *(Fault(f"proxy: {kind}", 8, partial(spoil_call, kind)) for kind in (*STATUSES, *CUTS)),
    Fault("proxy refuses for 5 s", 3, partial(cut_proxy, "refuse", 5.0)),
    Fault("proxy silent for 5 s", 3, partial(cut_proxy, "silent", 5.0)),
    Fault("network cut for 4 s", 5, partial(pull_cable, 4.0)),
    Fault("network cut for 15 s", 2, partial(pull_cable, 15.0)),
    Fault("disk of a node full for 6 s", 4, partial(fill_disk, "node", 6.0)),
    Fault("disk of the coordinator full for 6 s", 4, partial(fill_disk, "server", 6.0)),
    Fault("clock of a node 2 min ahead for 6 s", 2, partial(set_clock, 120, 6.0)),
    Fault("clock of a node 2 min behind for 6 s", 2, partial(set_clock, -120, 6.0)),
    Fault("clock of a node 1 h ahead for 6 s", 2, partial(set_clock, 3600, 6.0)),
    Fault("clock of a node 1 h behind for 6 s", 2, partial(set_clock, -3600, 6.0)),
    *(Fault(f"{ORDERED}{kind}", 2, partial(command_hostile, kind)) for kind in COSTLY),
)
SHORT = ("SIGKILL node", "SIGKILL ServerApp", "SIGKILL SuperLink")
