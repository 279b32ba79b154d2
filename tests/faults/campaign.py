"""The fault campaign: a deployment works, a seeded plan breaks it, and after every fault it must have healed.

``python tests/faults/campaign.py --faults 100 --seed 0 --out FOLDER`` or ``pytest -m faults tests/faults``.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from deployment import ENDED, LOOPBACK, Deployment, await_end, rounds_of, status_of
from faults import CATALOGUE, ORDERED, Fault, Scene
from hostile import CHEAP, GOOD
from invariants import (
    budget_holds,
    checkpointed,
    node_holds,
    nothing_is_left_over,
    run_holds,
    run_is_whole,
)
from machine import cable, clock, small_disk
from proxy import Proxy
from replies import Replies, replies_of

HONEST, HOSTILE = ("bank", "clinic"), "rogue"
DISK_MIB = {"server": 1500, "node": 500}
RECOVERY_SECONDS = 120.0
ROUNDS = 40
PRIVATE = {
    "privacy.unit": "record",
    "privacy.epsilon": 1.0,
    "privacy.public_records": 40,
    "privacy.max_noise_to_signal": 1e9,
    "federation.quorum": 1,
    "federation.norm_bound": 1000.0,
    "federation.robust": "median",
    "federation.rounds": ROUNDS,
    "federation.evaluate_every": 1,
}
DENSE = {"exchange.up.codec": "dense-fp32", "exchange.up.error_feedback": "false"}


@dataclass
class Outcome:
    """What a fault came to.

    Attributes:
        fault: its name.
        run: of the campaign.
        seconds: from the end of the fault to the end of the second round in which all honest nodes took part.
        short: rounds meanwhile that lacked an honest node.
        lost: acknowledged rounds that were gone afterwards.
        wrong: what does not hold; empty if all does.
    """

    fault: str
    run: str
    seconds: float = 0.0
    short: int = 0
    lost: int = 0
    wrong: str = ""


@dataclass
class Campaign:
    """A deployment under faults; runs follow one another for as long as there are faults and seconds left."""

    scene: Scene
    rounds: int = ROUNDS
    seconds: float = float("inf")
    runs: list[Path] = field(default_factory=list[Path])
    outcomes: list[Outcome] = field(default_factory=list[Outcome])

    def play(self, plan: Sequence[Fault]) -> None:
        """Inject all faults of a plan, one after the other, each into a deployment that works."""
        self._full_round(self._next_round(1))
        end = time.monotonic() + self.seconds
        for number, fault in enumerate(plan, 1):
            if time.monotonic() > end:
                self._tell(f"time is up: {number - 1} of {len(plan)} faults")
                break
            outcome = self._inject(fault)
            if outcome is not None:
                self.outcomes.append(outcome)
                self._tell(f"{number}/{len(plan)} {json.dumps(asdict(outcome))}")
        self.finish()

    def _tell(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Let the last run end, and hold everything against the invariants."""
        deployment = self.scene.deployment
        await_end(self.runs[-1], RECOVERY_SECONDS + 5 * self.rounds)
        for run in self.runs:
            status = status_of(run)
            assert status["state"] == "done", (run.name, status)
            run_is_whole(run)
        nothing_is_left_over(deployment)

    def _inject(self, fault: Fault) -> Outcome | None:
        run = self._current()
        outcome = Outcome(fault.name, run.name)
        known = {one: checkpointed(one) for one in self.runs[-2:]}
        try:
            if not fault.inject(self.scene):
                return None
            healed = time.monotonic()
            place = self._next_round(2)
            self._full_round(place)
            outcome.seconds = time.monotonic() - healed
            outcome.short = self._short(run, known[run])
            outcome.lost = sum(max(0, before - checkpointed(one)) for one, before in known.items())
            self._holds()
        except AssertionError as error:
            outcome.wrong = str(error)
        return outcome

    def _holds(self) -> None:
        for run in self.runs[-2:]:
            run_holds(run)
        for name in self.scene.honest:
            node_holds(self.scene.deployment.nodes[name])
        nothing_is_left_over(self.scene.deployment)

    def _current(self) -> Path:
        """The run in progress; a new one where the last has ended."""
        if not self.runs or status_of(self.runs[-1])["state"] in ENDED:
            number = len(self.runs) + 1
            settings = PRIVATE | {"federation.rounds": self.rounds, "run.seed": number}
            settings |= DENSE if number % 2 else {}
            deployment = self.scene.deployment
            judge = ("--eval-data", str(deployment.held_out))
            self.runs.append(deployment.submit(f"run-{number:02d}", settings, *judge))
        return self.runs[-1]

    def _next_round(self, ahead: int) -> tuple[Path, int]:
        """A round that has not begun yet."""
        run = self._current()
        told = rounds_of(run)
        return run, (told[-1]["round"] if told else 0) + ahead

    def _full_round(self, place: tuple[Path, int]) -> None:
        """Wait for a round at a place or after it in which all honest nodes took part."""
        run, number = place
        end = time.monotonic() + RECOVERY_SECONDS
        while True:
            if any(event["round"] >= number and self._full(event) for event in rounds_of(run)):
                return
            status = status_of(run)
            assert status["state"] not in ("failed", "stopped"), f"{run.name}: {status['cause']}"
            if status["state"] == "done":
                run, number = self._current(), 1
            assert time.monotonic() < end, (
                f"no full round within {RECOVERY_SECONDS:.0f} s in {run.name}: {status}"
            )
            time.sleep(0.05)

    def _full(self, event: dict[str, Any]) -> bool:
        return set(self.scene.honest) <= event["ledger"].keys()

    def _short(self, run: Path, before: int) -> int:
        return sum(not self._full(event) for event in rounds_of(run) if event["round"] > before)


def plan_of(seed: int, count: int, catalogue: Sequence[Fault] = CATALOGUE) -> list[Fault]:
    """Faults in an order that the seed gives, each kind by its share of a whole campaign."""
    whole = sum(fault.times for fault in catalogue)
    plan = [fault for fault in catalogue for _ in range(max(1, round(fault.times * count / whole)))]
    order = np.random.default_rng(seed).permutation(len(plan))
    return [plan[index] for index in order]


@contextmanager
def scene(root: Path, seed: int, hostile: bool = True, plain: bool = False) -> Generator[Scene]:
    """A deployment of two honest nodes and a hostile one, with all that this machine lends.

    Args:
        root: an empty folder.
        seed: of the plan.
        hostile: whether there is a hostile node.
        plain: no disks, cables, clocks or proxies.
    """
    with ExitStack() as stack:
        line = None if plain else stack.enter_context(cable(seed % 250 + 1))
        deployment = Deployment(root, line.host if line else LOOPBACK)
        disks = {"server": root / "home" / "server", "node": root / "disk"}
        found = (
            {} if plain else {n: stack.enter_context(small_disk(p, DISK_MIB[n])) for n, p in disks.items()}
        )
        stack.callback(_close, deployment)
        deployment.begin()
        made = Scene(deployment, np.random.default_rng(seed), list(HONEST), cable=line)
        made.disks = {name: disk for name, disk in found.items() if disk is not None}
        made.clock = None if plain else clock(root / "clock")
        _populate(made, stack, hostile, plain)
        yield made


def _populate(made: Scene, stack: ExitStack, hostile: bool, plain: bool) -> None:
    """Enrol the nodes and start them: the first has its own disk and clock, the second a cable."""
    deployment, root = made.deployment, made.deployment.root
    names = (*HONEST, *((HOSTILE,) if hostile else ()))
    files = deployment.write_data(names)
    for name in names:
        proxy = None
        if not plain and name in HONEST:
            proxy = Proxy(deployment.host, deployment.settings["port"], deployment.server)
            stack.callback(proxy.close)
            made.proxies[name] = proxy
        place = root / "disk" / name if "node" in made.disks and name == HONEST[0] else None
        deployment.join(name, files[name], proxy.address if proxy else None, place)
    first, second = (deployment.nodes[name] for name in HONEST)
    deployment.run(first, **(made.clock.environment if made.clock else {}))
    deployment.run(second, prefix=made.cable.prefix if made.cable else ())
    if hostile:
        made.hostile = deployment.nodes[HOSTILE].home
        program = [sys.executable, "-P", str(Path(__file__).parent / "hostile.py"), str(made.hostile), "0"]
        deployment.run(deployment.nodes[HOSTILE], program)


def _close(deployment: Deployment) -> None:
    left = deployment.close()
    if left:
        print(f"left over and killed: {left}", file=sys.stderr)


HEAD = ("fault", "injected", "rounds lost", "rounds short of a node", "median s", "worst s", "outcome")


def table(outcomes: Sequence[Outcome]) -> str:
    """One line for each kind of fault."""
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        kinds[one.fault].append(one)
    rows = [_row(fault.name, kinds[fault.name]) for fault in CATALOGUE if fault.name in kinds]
    lines = [" | ".join(HEAD), "|".join(["---", *["--:"] * (len(HEAD) - 2), "---"]), *rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _row(name: str, found: Sequence[Outcome]) -> str:
    seconds, wrong = [one.seconds for one in found], sorted({one.wrong for one in found if one.wrong})
    sums = (len(found), sum(one.lost for one in found), sum(one.short for one in found))
    times = (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    return " | ".join(map(str, (name, *sums, *times, "; ".join(wrong) or "recovered")))


def hostile_replies(made: Scene, campaign: Campaign) -> Replies | None:
    """What became of the hostile node's replies; None where there is no such node."""
    return replies_of(made.hostile, campaign.runs) if made.hostile is not None else None


def hostile_wrong(made: Scene, campaign: Campaign) -> list[str]:
    """Kinds of hostile replies that were scheduled and never sent, or not judged as they should be."""
    found = hostile_replies(made, campaign)
    ordered = [one.fault.removeprefix(ORDERED) for one in campaign.outcomes if one.fault.startswith(ORDERED)]
    return found.wrong((GOOD, *CHEAP, *ordered)) if found is not None else []


def report(made: Scene, campaign: Campaign) -> str:
    """All tables of a campaign, and what the nodes' own books say."""
    parts = [table(campaign.outcomes)]
    if (found := hostile_replies(made, campaign)) is not None:
        bad = "; ".join(hostile_wrong(made, campaign)) or "every kind was sent and judged as it should be"
        parts += [found.table(), f"{found.hostile} hostile replies: {bad}"]
    for name in made.honest:
        node = made.deployment.nodes[name]
        spent = {key: round(value, 3) for key, value in budget_holds(node).items()}
        parts.append(
            f"{name}: {node_holds(node)}, epsilon {spent}, starts {node.service and node.service.starts}"
        )
    restarts = {run.name: status_of(run)["restarts"] for run in campaign.runs}
    parts.append(f"runs done: {len(campaign.runs)}, restarts of their processes: {restarts}")
    return "\n\n".join(parts)


def main() -> None:
    """Run a campaign and print its tables; exit code 1 if anything does not hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=sum(fault.times for fault in CATALOGUE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only", default="", help="parts of the names of faults, joined by commas")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    catalogue = [fault for fault in CATALOGUE if any(part in fault.name for part in given.only.split(","))]
    root = given.out or Path(tempfile.mkdtemp(prefix="fedpeft-faults-"))
    with scene(root, given.seed) as made:
        campaign = Campaign(made, seconds=60 * given.minutes)
        try:
            campaign.play(plan_of(given.seed, given.faults, catalogue))
        finally:
            print(report(made, campaign))
        broken = any(one.wrong or one.lost for one in campaign.outcomes)
        sys.exit(broken or bool(hostile_wrong(made, campaign)))


if __name__ == "__main__":
    main()
