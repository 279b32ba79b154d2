"""No record acts on what a model makes of another: real architectures whose passes hang on their batch."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from fedpeft.bases.load import quiet
from fedpeft.data import Example, collate
from fedpeft.data.batches import whole_units
from fedpeft.errors import PrivacyError
from fedpeft.evaluation.metrics import evaluate
from fedpeft.exchange.layout import Layout
from fedpeft.training.dp import engine_selection, per_example
from fedpeft.training.dp.engine_selection import engine_of
from fedpeft.training.dp.per_example import Engine, clipped_sum
from fedpeft.training.modes import forget, steady

VOCABULARY, TRAINED_FOR, LONGEST = 61, 32, 80
CLIP = 1e-3
"""Far below every gradient's norm, so that a coupled record moves the sum by much more."""

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": TRAINED_FOR,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 2 * i for i in range(8)],
}


def config_of(kind):
    import transformers as hf

    short, long = {"max_position_embeddings": TRAINED_FOR}, {"max_position_embeddings": 4 * TRAINED_FOR}
    experts = {"num_experts_per_tok": 2, **long}
    if kind == "llama dynamic":
        return hf.LlamaConfig(rope_parameters=dict(DYNAMIC), **short, **SHAPE)
    if kind == "llama longrope":
        return hf.LlamaConfig(rope_parameters=dict(LONG), **long, **SHAPE)
    if kind == "phi3 longrope":
        rope = {key: value for key, value in LONG.items() if key != "original_max_position_embeddings"}
        original = {"original_max_position_embeddings": TRAINED_FOR}
        return hf.Phi3Config(rope_parameters=rope, **original, **long, **SHAPE)
    if kind == "qwen2 dynamic":
        return hf.Qwen2Config(rope_parameters=dict(DYNAMIC), **short, **SHAPE)
    if kind == "qwen2 yarn":
        yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
        return hf.Qwen2Config(rope_parameters=yarn, **long, **SHAPE)
    if kind == "mixtral":
        return hf.MixtralConfig(num_local_experts=4, **experts, **SHAPE)
    if kind == "qwen2 moe":
        sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        return hf.Qwen2MoeConfig(num_experts=4, **sizes, **experts, **SHAPE)
    assert kind == "llama"
    return hf.LlamaConfig(**long, **SHAPE)


class Toy:
    """LoRA on a small model of a real architecture."""

    def __init__(self, kind="llama", dtype=torch.float32):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = AutoModelForCausalLM.from_config(config_of(kind)).to(dtype)
            targets = ["qkv_proj", "o_proj"] if kind.startswith("phi3") else ["q_proj", "o_proj"]
            lora = LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM")
            self.model = get_peft_model(base, lora, autocast_adapter_dtype=False)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for parameter in self.parameters.values():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
        self.layout = Layout.of(self.parameters)

    @property
    def layer(self):
        return self.model.get_base_model().model.layers[0]


def example(length, rng):
    return Example(rng.integers(1, VOCABULARY, length), (np.arange(length) > 0).astype(np.float32))


def total(attached, examples, engine):
    """The clipped sum of a step, cut into physical batches as training cuts it."""
    batches = whole_units(attached.model, [[record] for record in examples], 8192)
    return sum(clipped_sum(attached, batch, CLIP, units, engine=engine)[0] for batch, units in batches)


def moved(attached, engine, seed=0):
    """By how many clips one more record moves the sum: a long one, and one of middle length."""
    rng = np.random.default_rng(seed)
    others = [example(int(rng.integers(4, 60)), rng) for _ in range(10)]
    without = total(attached, others, engine)
    extras = [example(LONGEST, rng), example(40, rng)]
    return [np.linalg.norm(total(attached, [*others, extra], engine) - without) / CLIP for extra in extras]


KINDS = {
    "llama": "batched",
    "qwen2 yarn": "batched",
    "llama dynamic": "loop",
    "llama longrope": "loop",
    "phi3 longrope": "loop",
    "qwen2 dynamic": "loop",
    "mixtral": "loop",
    "qwen2 moe": "loop",
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_record_moves_the_sum_by_at_most_the_clip(kind):
    attached = Toy(kind)
    chosen = engine_of(attached, "auto", LONGEST)
    assert chosen.name == KINDS[kind], chosen.reason
    for engine in (chosen, engine_of(attached, "loop", LONGEST)):
        for seed in range(3):
            assert max(moved(attached, engine, seed)) <= 1 + 1e-3


@pytest.mark.parametrize("kind", ["llama dynamic", "llama longrope"])
def test_positions_that_no_record_reaches_do_not_cost_the_batched_engine(kind):
    """Only at lengths that occur: shorter records are never stretched."""
    attached = Toy(kind)
    assert engine_of(attached, "auto", TRAINED_FOR).name == "batched"
    assert engine_of(attached, "auto", TRAINED_FOR + 1).name == "loop"


@pytest.mark.parametrize("kind", ["llama dynamic", "phi3 longrope"])
def test_a_batch_longer_than_the_gates_looked_is_left_to_the_loop(kind):
    attached = Toy(kind)
    engine = engine_of(attached, "auto", TRAINED_FOR)
    assert engine.name == "batched" and engine.longest == TRAINED_FOR
    assert max(moved(attached, engine)) <= 1 + 1e-3


def test_what_was_evaluated_before_leaves_no_trace():
    """A long record, seen by an evaluation or by a step before, would stretch the positions of all others."""
    rng = np.random.default_rng(0)
    records, long = [example(48, rng) for _ in range(4)], example(LONGEST, rng)
    attached = Toy("llama dynamic")
    engine = engine_of(attached, "auto", LONGEST)
    fresh = total(attached, records, engine)
    evaluate(attached.model, [long], None, None)
    np.testing.assert_allclose(total(attached, records, engine), fresh, rtol=1e-5, atol=1e-9)
    alone = total(attached, [long], engine)
    together = total(attached, [long, *records], engine)
    np.testing.assert_allclose(together, fresh + alone, rtol=1e-4, atol=1e-8)


class Remembers(torch.nn.Module):
    """Scales its output by what the longest input so far was, kept in some place of the module."""

    PLACES = ("buffer", "rebound buffer", "number", "list", "dict of tensors", "array", "new attribute")

    def __init__(self, inner, place):
        super().__init__()
        self.inner, self.place, self.number = inner, place, 1.0
        self.register_buffer("seen", torch.ones(()))
        self.list, self.dict, self.array = [1.0], {"seen": torch.ones(())}, np.ones(1)

    def scale(self):
        if "buffer" in self.place:
            return float(self.seen)
        held = {
            "number": self.number,
            "list": self.list[0],
            "dict of tensors": float(self.dict["seen"]),
            "array": float(self.array[0]),
            "new attribute": getattr(self, "fresh", 1.0),
        }
        return held[self.place]

    def keep(self, value):
        if self.place == "buffer":
            self.seen.fill_(value)
        elif self.place == "rebound buffer":
            self.register_buffer("seen", torch.tensor(value))
        elif self.place == "number":
            self.number = value
        elif self.place == "list":
            self.list[0] = value
        elif self.place == "dict of tensors":
            self.dict["seen"].fill_(value)
        elif self.place == "array":
            self.array[:] = value
        else:
            self.fresh = value

    def forward(self, x):
        scale = self.scale()
        self.keep(max(scale, 1 + x.shape[1] / 20))
        return self.inner(x) * scale


@pytest.mark.parametrize("place", Remembers.PLACES)
def test_what_a_pass_leaves_in_a_module_is_put_back(place):
    """The output hangs on earlier passes alone, so that each single pass looks innocent."""
    attached = Toy()
    attached.layer.mlp = memory = Remembers(attached.layer.mlp, place)
    for engine in (engine_of(attached, "auto", LONGEST), engine_of(attached, "loop", LONGEST)):
        assert max(moved(attached, engine)) <= 1 + 1e-3
        assert memory.scale() == 1.0 and not hasattr(memory, "fresh")


class Tracking(torch.nn.Module):
    """Centres by a running mean, as a batch norm of somebody's own would."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, x):
        out = self.inner(x)
        self.mean.mul_(0.5).add_(out.detach().mean((0, 1)), alpha=0.5)
        return out - self.mean


def test_running_statistics_are_put_back_and_no_batch_shares_them():
    attached = Toy()
    attached.layer.mlp = Tracking(attached.layer.mlp)
    engine = engine_of(attached, "auto", LONGEST)
    assert engine.name == "loop" and max(moved(attached, engine)) <= 1 + 1e-3


class Hidden:
    """Memory in an object that is neither tensor nor container."""

    value = 1.0


class Hides(Remembers):
    def __init__(self, inner):
        super().__init__(inner, "buffer")
        self.memory = Hidden()

    def scale(self):
        return self.memory.value

    def keep(self, value):
        self.memory.value = value


def test_a_memory_that_cannot_be_put_back_is_refused():
    attached = Toy()
    attached.layer.mlp = Hides(attached.layer.mlp)
    for wanted in ("auto", "batched", "loop"):
        with pytest.raises(
            PrivacyError, match=r"one record changes the base's output for the next one.*privacy\.unit"
        ):
            engine_of(attached, wanted, LONGEST)


def test_a_change_between_two_blocks_is_not_undone():
    """What is put back is what passes did, not what the caller did before them."""
    attached = Toy()
    attached.layer.mlp = memory = Remembers(attached.layer.mlp, "number")
    memory.number = 3.0
    with steady(attached.model):
        memory.number = 4.0
        forget(attached.model)
        assert memory.number == 3.0
        with steady(attached.model):
            memory.number = 5.0
        assert memory.number == 3.0
    memory.number = 6.0
    with steady(attached.model):
        pass
    assert memory.number == 6.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_to_the_loop(dtype):
    """In a batch each record is rounded by the shape that the longest one gives it."""
    attached, rng = Toy(dtype=dtype), np.random.default_rng(0)
    engine = engine_of(attached, "auto", LONGEST)
    assert engine.name == "loop" and "rounds a record's gradient" in engine.reason
    records = [example(int(rng.integers(4, 60)), rng) for _ in range(10)]
    long = example(LONGEST, rng)
    apart = total(attached, records, engine) + total(attached, [long], engine)
    np.testing.assert_allclose(total(attached, [*records, long], engine), apart, rtol=0, atol=1e-4 * CLIP)


def test_rounded_products_are_left_to_the_loop():
    attached = Toy()
    before = torch.get_float32_matmul_precision()
    assert engine_of(attached).name == "batched"
    torch.set_float32_matmul_precision("high")
    try:
        assert "precision 'high'" in engine_of(attached).reason
    finally:
        torch.set_float32_matmul_precision(before)
    assert engine_of(attached).name == "batched"


class Poison(torch.nn.Module):
    """Not a number where a condition holds."""

    def __init__(self, inner, condition):
        super().__init__()
        self.inner, self.condition = inner, condition

    def forward(self, x):
        return self.inner(x) * (float("nan") if self.condition(x) else 1.0)


def test_a_batch_that_is_not_finite_does_not_pass():
    attached = Toy()
    attached.layer.mlp = Poison(attached.layer.mlp, lambda x: x.shape[0] > 1)
    engine = engine_of(attached, "auto", LONGEST)
    assert engine.name == "loop" and "differ" in engine.reason


def test_a_sum_that_is_not_finite_does_not_pass(monkeypatch):
    attached = Toy()
    lost = torch.full((1, attached.layout.size), float("nan"))
    monkeypatch.setattr(engine_selection, "_gradient_of_sum", lambda attached, probe: lost)
    assert "not the sum" in engine_of(attached, "auto", LONGEST).reason


@pytest.mark.parametrize("length", [1, 40])
def test_a_base_that_is_not_finite_is_refused(length):
    attached = Toy()
    attached.layer.mlp = Poison(attached.layer.mlp, lambda x: x.shape[1] > length)
    with pytest.raises(PrivacyError, match=r"not finite; set base\.dtype"):
        engine_of(attached, "auto", LONGEST)


def test_records_longer_than_the_table_of_positions_are_refused(toy):
    attached = toy("gpt2")
    assert engine_of(attached, "auto", 64).name == "batched"
    with pytest.raises(
        PrivacyError, match=r"places for 64 tokens, but records may have 65; set data\.max_length"
    ):
        engine_of(attached, "auto", 65)


def test_a_base_that_fails_at_a_length_in_use_is_refused():
    attached = Toy()

    def fails(x):
        if x.shape[1] > 40:
            raise RuntimeError("no room for 40")
        return False

    attached.layer.mlp = Poison(attached.layer.mlp, fails)
    with pytest.raises(
        PrivacyError, match=r"no pass over 80 made-up tokens \(RuntimeError: no room for 40\)"
    ):
        engine_of(attached, "auto", LONGEST)


@pytest.mark.parametrize("longest", [1, 4, 9, 10, 64, 256, 1000])
def test_probes_reach_from_short_to_longest(longest):
    probes = engine_selection._probe_lengths(longest)
    lengths = sorted({length for probe in probes for length in probe})
    assert lengths[-1] == longest and len(probes) >= 2
    assert all(after <= 2 * before + 3 for before, after in pairwise(lengths))


def test_the_loop_serves_a_batch_of_a_length_that_no_gate_saw(monkeypatch):
    attached, rng = Toy(), np.random.default_rng(0)
    monkeypatch.setattr(per_example, "batched_rows", None)
    batch = collate([example(length, rng) for length in (5, 7, 9)], 0)
    assert np.isfinite(clipped_sum(attached, batch, CLIP, engine=Engine("batched", "", 8))[0]).all()
