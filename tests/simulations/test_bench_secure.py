"""The benchmark of secure sums: exact rounds, and Flower's functions doing what Flower does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpeft_bench.secure import secure
from fedpeft_bench.secure.flower_secagg import CLIPPING_RANGE, MODULUS, QUANTISATION_RANGE, FlowerNode


def test_a_small_benchmark_is_exact_and_prints():
    facts = secure.secure((2, 4), size=1000)
    assert all(row["exact"] for row in facts["rows"])
    assert [row["dropped"] for row in facts["rows"]] == [0, 1]
    lines = secure.cells(facts)
    assert {len(line) for line in lines} == {len(secure.COLUMNS)}
    assert json.loads(json.dumps(facts)) == facts


def test_bytes_are_those_of_the_messages(tmp_path):
    """What a node sends, summed over the messages of a real round."""
    sent, nodes = 0, 4
    work = secure.Round.of(nodes, 50, tmp_path)

    def count(step, call, *arguments):
        nonlocal sent
        result = call(*arguments)
        if step in ("keys", "shares", "mask", "agree", "reveal"):
            parts = result[1:] if isinstance(result, tuple) else (result,)
            flat = [p for part in parts for p in (part.values() if isinstance(part, dict) else [part])]
            sent += sum(part.nbytes if isinstance(part, np.ndarray) else len(part) for part in flat)
        return result

    work._timed = count
    assert work.run(0)
    row = secure.row(nodes, 50)
    assert sent == nodes * (row["other_bytes"] + 50 * row["bytes_per_value"])


def test_flowers_masks_are_flowers():
    """Eight bytes a value below its modulus; without peers only the own mask hides the values."""
    node = FlowerNode.among(3, 2)
    quantised = node.quantise(np.linspace(-1, 1, 100))
    assert quantised[0].max() <= QUANTISATION_RANGE * (1 + 1 / CLIPPING_RANGE) / 2 + 1
    masked = node.mask(quantised)
    assert masked[0].dtype == np.int64 and masked[0].min() >= 0 and masked[0].max() < MODULUS
    assert len(node.share()) == 2


@pytest.mark.parametrize("nodes", [4, 7])
def test_sums_with_dropped_nodes_are_exact(tmp_path, nodes):
    assert secure.Round.of(nodes, 100, tmp_path).run(nodes // 3)
