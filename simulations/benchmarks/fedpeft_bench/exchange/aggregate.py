"""``fedpeft bench aggregate``: one core sums the updates of a hundred nodes into one vector.

Envelopes are opened as they come, signature included, and added to the total in the order of the nodes; none
is made dense. A few envelopes with supports of their own are made beforehand and taken in turn: making all
of them would measure the nodes. Times are processor time of one core.
"""

from __future__ import annotations

import hashlib
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedpeft.errors import ConfigError
from fedpeft.exchange import ExchangePlan, FloatVector, Layout, Update, open_envelope, seal
from fedpeft.rng import stream
from fedpeft_bench.exchange.exchange import DENSITY, TERNARY
from fedpeft_bench.exchange.tensors import LARGE
from fedpeft_bench.harness.command import machine
from fedpeft_bench.harness.sealing import SIGNER, VERIFIER, context
from fedpeft_bench.harness.timing import best

SECONDS_GOAL, MEMORY_GOAL = 4.0, 1.5


@dataclass(frozen=True)
class Inbox:
    """Sealed updates of the first nodes; the others send the same again.

    Attributes:
        layout: the tensors.
        plan: the plan that the updates have passed.
        envelopes: one per distinct node.
    """

    layout: Layout
    plan: ExchangePlan
    envelopes: tuple[bytes, ...]

    @classmethod
    def filled(cls, layout: Layout, distinct: int) -> Inbox:
        """Envelopes of independent normal values, ternary at 5 %."""
        plan = TERNARY.plan(DENSITY)
        return cls(layout, plan, tuple(_sealed(layout, plan, node) for node in range(distinct)))

    def total(self, nodes: int) -> tuple[FloatVector, float, float]:
        """The mean of all nodes, and the seconds for all and for the opening alone."""
        total, opening = np.zeros(self.layout.size, np.float32), 0.0
        started = time.process_time()
        for node in range(nodes):
            opening += self._add(total, node % len(self.envelopes), 1 / nodes)
        return total, time.process_time() - started, opening

    def peak(self) -> int:
        """Most bytes that numpy holds at once while two envelopes are added to a fresh total."""
        tracemalloc.start()
        try:
            self.total(2)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def _add(self, total: FloatVector, node: int, weight: float) -> float:
        """Add one node's update; the seconds for opening it."""
        started = time.process_time()
        sender = context(sender=_name(node))
        opened = open_envelope(self.envelopes[node], self.layout, self.plan.codec, sender, VERIFIER)
        seconds = time.process_time() - started
        opened.add_to(total, weight)
        return seconds


def aggregate(nodes: int = 100, distinct: int = 10, layout: Layout = LARGE.layout) -> dict[str, Any]:
    """Average the envelopes of ``nodes`` nodes, of which ``distinct`` are different.

    Returns:
        ``machine``, ``parameters``, ``tensors``, ``nodes``, ``distinct``, ``density``, ``envelope`` (mean
        bytes), ``seconds`` for all nodes, ``opening`` (the part for verification and decoding),
        ``dense_seconds`` (the same from float32 vectors that are in memory already), ``memory`` (peak while
        nodes are added, the total included, over the size of the total), ``same_bits`` (a second pass gives
        the same total) and ``goals``.

    Raises:
        ConfigError: more distinct nodes than nodes, or none.
    """
    if not 0 < distinct <= nodes:
        raise ConfigError(f"{distinct} distinct of {nodes} nodes; give at least one and at most all")
    inbox = Inbox.filled(layout, distinct)
    total, seconds, opening = inbox.total(nodes)
    again, *_ = inbox.total(nodes)
    memory = inbox.peak() / total.nbytes
    return {
        "machine": machine(),
        "parameters": layout.size,
        "tensors": len(layout.names),
        "nodes": nodes,
        "distinct": distinct,
        "density": DENSITY,
        "envelope": sum(map(len, inbox.envelopes)) / distinct,
        "seconds": seconds,
        "opening": opening,
        "dense_seconds": _dense_seconds(layout.size) * nodes,
        "memory": memory,
        "same_bits": _digest(total) == _digest(again),
        "goals": {"seconds": seconds <= SECONDS_GOAL, "memory": memory <= MEMORY_GOAL},
    }


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures of `aggregate` as text."""
    met = {name: "met" if good else "NOT met" for name, good in facts["goals"].items()}
    different = f"{facts['distinct']} distinct envelopes in turn"
    return [
        ("parameters", f"{facts['parameters']:,} in {facts['tensors']} tensors"),
        ("nodes", f"{facts['nodes']} at {facts['density']:.0%}, {different}"),
        ("one envelope", f"{facts['envelope']:,.0f} bytes"),
        ("all nodes", f"{facts['seconds']:.2f} s (at most {SECONDS_GOAL:g}: {met['seconds']})"),
        ("of it verifying and decoding", f"{facts['opening']:.2f} s"),
        ("the same from dense float32", f"{facts['dense_seconds']:.2f} s"),
        ("peak over one dense vector", f"{facts['memory']:.2f}x (at most {MEMORY_GOAL:g}x: {met['memory']})"),
        ("same bits in a second pass", "yes" if facts["same_bits"] else "NO"),
    ]


def _name(node: int) -> str:
    return f"node-{node:03d}"


def _sealed(layout: Layout, plan: ExchangePlan, node: int) -> bytes:
    values = stream(0, 1, _name(node), "bench").standard_normal(layout.size, np.float32)
    final, _ = plan.run(Update(layout, values, 1, 1), {})
    return seal(final, plan, context(sender=_name(node)), SIGNER)


def _dense_seconds(size: int) -> float:
    """Processor time of one weighted dense addition."""
    total, values, product = (np.ones(size, np.float32) for _ in range(3))

    def add() -> None:
        np.multiply(values, np.float32(0.01), out=product)
        np.add(total, product, out=total)

    return best(add)[1]


def _digest(values: FloatVector) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()
