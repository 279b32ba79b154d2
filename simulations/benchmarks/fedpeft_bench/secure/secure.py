"""``fedpeft bench secure``: what a secure sum costs, beside the functions of Flower's SecAgg+.

Whole rounds run in this process with all their checks, receipts and durable records. Times are processor time
of one core; those of a node are the median over the nodes. Flower's are the shortest of several runs of one
node's work (`flower.secagg`), its checks and messages left out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft import secagg
from fedpeft.cohort import Cohort
from fedpeft.rng import stream
from fedpeft.secagg.discrete_gaussian import share_of_noise
from fedpeft.trust import Signer
from fedpeft_bench.harness.command import machine
from fedpeft_bench.harness.timing import best

COUNTS = (2, 10, 50, 100)
SIZE = 1_000_000
DROPS = 3
DEVIATION = 1e3
"""Of a node's share of the noise, in grid steps."""
PEER_COUNT = 10
MASK_GOAL_MS, BYTES_GOAL = 20.0, 1.0


@dataclass
class Round:
    """One secure sum of ternary values with the nodes and the coordinator in this process.

    Attributes:
        members: the nodes.
        coordinator: its side.
        seconds: processor time by step: a node's, or the coordinator's whole.
    """

    members: dict[str, secagg.Member]
    coordinator: secagg.CoordinatorRound
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    @classmethod
    def of(cls, nodes: int, size: int, folder: Path) -> Round:
        """A round of ``nodes`` nodes of which two thirds open the sum of ``size`` values."""
        cohort = Cohort(nodes, -(-2 * nodes // 3), min(3, nodes), 0)
        signers = {f"node-{index:03}": Signer.generate() for index in range(nodes)}
        roster = {name: signer.public for name, signer in signers.items()}
        members = {
            name: secagg.Member(name, signer, secagg.ReleaseStore(folder / name), roster, cohort)
            for name, signer in signers.items()
        }
        numbers = (cohort.threshold, cohort.least_nodes)
        terms = (os.urandom(16), 1, 0, bytes(32), tuple(roster.items()), *numbers, size, 8, bytes(32))
        return cls(members, secagg.CoordinatorRound(secagg.SecureContext(*terms)))

    def run(self, dropped: int) -> bool:
        """All five steps; the last ``dropped`` nodes vanish before they mask. Whether the sum is exact."""
        coordinator, secrets = self.coordinator, dict[str, secagg.NodeSecrets]()
        for name, member in self.members.items():
            secrets[name], message = self._timed("keys", secagg.advertise, coordinator.context, member)
            coordinator.add_advertisement(name, message)
        advertisements = coordinator.advertisements()
        for name in self.members:
            secrets[name], dealt = self._timed("shares", secagg.share, secrets[name], advertisements)
            coordinator.add_shares(name, dealt)
        staying = list(self.members)[: len(self.members) - dropped]
        inboxes, exact = coordinator.inboxes(), np.zeros(coordinator.context.size, np.int64)
        for name in staying:
            values = self._values(name)
            exact += values
            step = (secrets[name], self.members[name], secagg.to_residues(values, 8, 1), inboxes[name])
            secrets[name], masked, receipt = self._timed("mask", secagg.mask, *step)
            self._timed("add", coordinator.add_masked, name, masked, receipt)
        self._open(secrets)
        total = self._timed("unmask", coordinator.result)
        return bool(np.array_equal(secagg.from_residues(total, 8, len(staying)), exact))

    def milliseconds(self, step: str) -> float:
        """The median over the nodes of one step."""
        return 1e3 * statistics.median(self.seconds[step])

    def _open(self, secrets: dict[str, secagg.NodeSecrets]) -> None:
        receipts = self.coordinator.receipts()
        for name in receipts:
            step = (secrets[name], self.members[name], receipts)
            secrets[name], signature = self._timed("agree", secagg.agree, *step)
            self.coordinator.add_signature(name, signature)
        signatures = self.coordinator.signatures()
        for name in signatures:
            message = self._timed("reveal", secagg.reveal, secrets[name], self.members[name], signatures)
            self.coordinator.add_reveal(name, message)

    def _values(self, name: str) -> NDArray[np.int64]:
        return stream(0, 1, name, "bench").integers(-1, 2, self.coordinator.context.size)

    def _timed(self, step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = work(*arguments)
        self.seconds.setdefault(step, []).append(time.process_time() - started)
        return result


def secure(
    counts: Sequence[int] = COUNTS, size: int = SIZE, report: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Costs for each number of nodes, and Flower's for ten, fewer and the most of them.

    Returns:
        ``machine``, ``size``, ``rows`` (see `row`), ``flower`` (the same keys where they apply; times in
        milliseconds) and ``goals`` (of the row with ten nodes).
    """
    row(2, 10)  # what is loaded on first use is not measured
    rows: list[dict[str, Any]] = []
    for nodes in counts:
        rows.append(row(nodes, size))
        if report:
            report(f"{nodes} nodes")
    flower = [flower_row(nodes, size) for nodes in counts if 1 < nodes <= PEER_COUNT or nodes == max(counts)]
    ten = next((row for row in rows if row["nodes"] == PEER_COUNT), rows[0])
    goals = {"mask": ten["mask_ms"] <= MASK_GOAL_MS, "bytes": ten["bytes_per_value"] <= BYTES_GOAL}
    return {"machine": machine(), "size": size, "rows": rows, "flower": flower, "goals": goals}


def row(nodes: int, size: int) -> dict[str, Any]:
    """One round without and one with dropouts.

    Returns:
        ``nodes``; ``noise_ms`` (a share of it, trust ``distributed``), ``keys_ms`` (keys and shares),
        ``mask_ms``, ``open_ms`` (signature and reveal) of one node;
        ``bytes_per_value`` and ``other_bytes`` (keys, shares, signatures) up from one node; ``add_ms`` for
        each node, ``unmask_ms`` and, after ``dropped`` nodes were lost, ``unmask_dropped_ms`` of the
        coordinator; ``exact``.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, partial = (Round.of(nodes, size, Path(folder) / part) for part in ("whole", "partial"))
        dropped = min(DROPS, nodes - whole.coordinator.context.quorum)
        exact = whole.run(0)
        exact = partial.run(dropped) and exact
    _, noise = best(lambda: share_of_noise(size, DEVIATION**2))
    masked = np.dtype(whole.coordinator.context.dtype).itemsize
    return {
        "nodes": nodes,
        "noise_ms": 1e3 * noise,
        "keys_ms": whole.milliseconds("keys") + whole.milliseconds("shares"),
        "mask_ms": whole.milliseconds("mask"),
        "open_ms": whole.milliseconds("agree") + whole.milliseconds("reveal"),
        "bytes_per_value": float(masked),
        "other_bytes": 160 + nodes * 156 + 96 + 64 + nodes * 32 + 64,
        "add_ms": whole.milliseconds("add"),
        "unmask_ms": whole.milliseconds("unmask"),
        "dropped": dropped,
        "unmask_dropped_ms": partial.milliseconds("unmask"),
        "exact": exact,
    }


def flower_row(nodes: int, size: int) -> dict[str, Any]:
    """The work of one node in Flower's SecAgg+: the keys of `row`, and ``quantise_ms``."""
    from fedpeft_bench.secure.flower_secagg import FlowerNode, bytes_per_value

    node = FlowerNode.among(nodes, -(-2 * nodes // 3))
    messages, keys = best(node.share)
    quantised, quantise = best(lambda: node.quantise(stream(0, 1, "flower", "bench").standard_normal(size)))
    masked, mask = best(lambda: node.mask(quantised))
    return {
        "nodes": nodes,
        "keys_ms": 1e3 * keys,
        "mask_ms": 1e3 * mask,
        "quantise_ms": 1e3 * quantise,
        "bytes_per_value": bytes_per_value(masked),
        "other_bytes": sum(map(len, messages)),
    }


COLUMNS = (
    "nodes",
    "noise ms",
    "keys, shares ms",
    "mask ms",
    "sign, reveal ms",
    "B / value",
    "other kB",
    "add ms",
    "unmask ms",
    "with drops",
    "exact",
)


def cells(facts: dict[str, Any]) -> list[list[str]]:
    """The rows of `secure` as text: ours, then Flower's and the ratios to ours."""
    shown = [
        [
            f"fedpeft {row['nodes']}",
            *(f"{row[key]:.1f}" for key in ("noise_ms", "keys_ms", "mask_ms", "open_ms", "bytes_per_value")),
            f"{row['other_bytes'] / 1e3:.1f}",
            *(f"{row[key]:.1f}" for key in ("add_ms", "unmask_ms")),
            f"{row['unmask_dropped_ms']:.1f} ({row['dropped']})",
            "yes" if row["exact"] else "NO",
        ]
        for row in facts["rows"]
    ]
    ours = {row["nodes"]: row for row in facts["rows"]}
    for peer in facts["flower"]:
        ours_row, keys = ours[peer["nodes"]], ("keys_ms", "mask_ms", "bytes_per_value", "other_bytes")
        figures = [peer[key] for key in keys]
        ratios = [peer[key] / ours_row[key] for key in keys]
        for label, (first, mask, each, other) in (("Flower", figures), ("ratio", ratios)):
            other = other / 1e3 if label == "Flower" else other
            shown.append(
                [
                    f"{label} {peer['nodes']}",
                    "",
                    f"{first:.1f}",
                    f"{mask:.1f}",
                    "",
                    f"{each:.1f}",
                    f"{other:.1f}",
                ]
                + [""] * 4
            )
    return shown
