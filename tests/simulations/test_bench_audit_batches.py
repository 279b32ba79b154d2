"""``fedpeft bench audit batches`` on the embedded base: a batch whose positions the rank exceeds is read."""

import pytest

from fedpeft.adapters import detach
from fedpeft.bases import load_base
from fedpeft.config.models import BaseConfig
from fedpeft.runstore import write_json_lines
from fedpeft_bench.audit import batches
from fedpeft_bench.real.prepare import Material
from fedpeft_simulations.embedded import base_path

TEXTS = ("It helps me sleep.", "No effect at all after a week.", "My pain is gone, but I feel tired.")


@pytest.mark.slow
def test_a_batch_is_read_and_counted(tmp_path):
    reviews = [{"prompt": text, "completion": "positive"} for text in TEXTS]
    material = Material.below(tmp_path)
    material.organisations.mkdir()
    write_json_lines(material.organisations / f"{batches.HOLDER}.jsonl", reviews)
    base = load_base(BaseConfig(model=str(base_path()), device="cpu"))
    setting = batches.Setting(96, 2, 32, weight=0.2)
    (case,) = batches._cases(base, material, setting, [0])
    ours, *others = batches._measured(case)
    detach()
    assert ours["exact"] == ours["certain"] == 1.0
    assert ours["distinct"] <= ours["positions"] < 64
    assert [row["attack"] for row in others] == ["DAGER, distance 0.05", "DAGER, distance 0.001"]
    assert len(batches._means([ours, ours, *others])) == 3
