"""Adapter kinds of peft through pack, merge and eval: kept, or refused in a line (peft#1836, #2421)."""

import pytest

from fedpeft.bases.load import quiet
from fedpeft.packing.recipe import Recipe
from fedpeft_bench.exchange.adapter_kind_configs import ARCHITECTURES, kinds
from fedpeft_bench.exchange.adapter_kinds import make_base, measure, train

EXACT = ("OFT", "FourierFT", "RandLoRA", "SHiRA", "LN tuning", "Trainable tokens", "HiRA", "Prefix tuning")
COARSE = ("LoRA", "DoRA", "AdaLoRA", "LoHa", "LoKr", "(IA)3", "MiSS", "VeRA", "LoRA and saved head")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with quiet():
        return make_base("llama", tmp_path_factory.mktemp("kinds") / "base")


@pytest.mark.parametrize("kind", [*EXACT, *COARSE])
def test_what_an_adapter_has_learned_is_kept(base, tmp_path, kind):
    with quiet():
        train(base, kinds(ARCHITECTURES["llama"])[kind], tmp_path / "adapter", steps=10)
        row = measure("llama", kind, base, tmp_path / "adapter", Recipe(step=0.02))
    assert float(row.logits[:-1]) <= (0.01 if kind in EXACT else 2.0), row  # per cent of its effect
    assert row.merged == "0.00%" or kind == "Prefix tuning", row
    assert row.evaluated == "yes", row
    assert kind != "Prefix tuning" or row.merged == "no: it changes no weights of the base"
