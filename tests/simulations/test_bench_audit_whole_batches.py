"""``fedpeft bench audit whole_batches`` on the embedded base: a batch with fewer positions than rank."""

import pytest

from fedpeft.adapters import detach
from fedpeft.bases import load_base
from fedpeft.config.models import BaseConfig
from fedpeft.runstore import write_json_lines
from fedpeft_bench.audit import whole_batches
from fedpeft_bench.real.prepare import Material
from fedpeft_simulations.embedded import base_path

TEXTS = ("It helps me sleep.", "No effect at all after a week.", "My pain is gone, but I feel tired.")


@pytest.mark.slow
def test_a_batch_is_read_and_counted(tmp_path):
    reviews = [{"prompt": text, "completion": "positive"} for text in TEXTS]
    material = Material.below(tmp_path)
    material.organisations.mkdir()
    write_json_lines(material.organisations / f"{whole_batches.HOLDER}.jsonl", reviews)
    base = load_base(BaseConfig(model=str(base_path()), device="cpu"))
    setting = whole_batches.Setting(96, 2, 32, weight=0.2)
    (case,) = whole_batches._cases(base, material, setting, [0])
    ours, *others = whole_batches._measured(case)
    detach()
    assert ours["exact"] == ours["certain"] == 1.0
    assert ours["distinct"] <= ours["positions"] < 64
    assert [row["attack"] for row in others] == ["DAGER, distance 0.05", "DAGER, distance 0.001"]
    assert len(whole_batches._means([ours, ours, *others])) == 3
