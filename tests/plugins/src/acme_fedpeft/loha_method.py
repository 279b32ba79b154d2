"""An adapter method: LoHa (Hadamard products of two low-rank factors, arXiv 2108.06098)."""

import numpy as np

from fedpeft.adapters import AdapterMethod, Traits
from fedpeft.rng import stream

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def build(spec):
    """What peft builds it from."""
    from peft import LoHaConfig

    return LoHaConfig(r=spec.rank, alpha=spec.rank, target_modules=list(spec.targets))


def initial(name, shape, seed):
    """One factor is zero, so that the adapter starts as nothing."""
    if name.endswith("hada_w2_a"):
        return np.zeros(shape, np.float32)
    return (0.1 * stream(seed, 0, "", f"loha:{name}").standard_normal(shape)).astype(np.float32)


LOHA = AdapterMethod(
    name="loha",
    traits=Traits(linear=False, dp="loop", exports_lora=False, trains_inputs=False),
    aggregation="mean",
    trained=PARTS,
    build=build,
    initial=initial,
)
