"""``fedpeft bench audit cost`` on a small shape: every row has its figures, and tokens are read."""

import sys

import pytest

from fedpeft_bench.audit import cost

pytestmark = [
    pytest.mark.portable,
    pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory"),
]


def test_a_shape_is_measured(monkeypatch):
    monkeypatch.setitem(cost.SHAPES, "small", cost.Shape(600, 64, 96, (4, 2), 1))
    monkeypatch.setattr(cost, "LENGTH", 6)
    monkeypatch.setattr(cost, "STEPS", 2)
    monkeypatch.setattr(cost, "DEEP", 2)
    rows = {row["what"]: row for row in cost.measure("small", 0)}
    assert list(rows) == [
        "inputs of the first layer",
        "a gradient of the batch",
        "span",
        "sparse-recovery",
        "sparse-recovery, of signs",
        "sequences, null model",
        "sequences, search",
    ]
    assert rows["sparse-recovery"]["recall"] == 1.0
    assert all(row["seconds"] > 0 and row["bytes"] >= 0 for row in rows.values())
    assert {row["layers"] for row in rows.values()} == {1, 2}
    cost.show({"machine": "here", "rows": list(rows.values())})
