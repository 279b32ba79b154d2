"""Per-example gradients of every adapter method on every kind of base, and gates on methods of others."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach
from fedpeft.bases.load import quiet
from fedpeft.config.models import AdapterConfig
from fedpeft.data import Example, collate
from fedpeft.errors import PrivacyError
from fedpeft.exchange.layout import Layout
from fedpeft.plugins import ADAPTER_METHODS
from fedpeft.training.dp.backward_passes import batched_rows, bounds_of, unit_row
from fedpeft.training.dp.engine_selection import HOOKS, engine_of
from fedpeft.training.dp.per_example import clipped_sum
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady

CHECKPOINTING = {"off": None, "reentrant": True, "non-reentrant": False}
INVOCATION = [7, 8]


def examples_of(count, seed=0):
    """Examples of different lengths; each holds the tokens that wake an activated LoRA."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        ids = rng.integers(10, 60, int(rng.integers(6, 13)))
        ids[2:4] = INVOCATION
        weights = np.zeros(len(ids), np.float32)
        weights[-2:] = 1, 0.5
        found.append(Example(ids, weights))
    return found


def naive(attached, examples):
    """Plain autograd, a batch of one each, without padding; float64 rows."""
    rows = []
    for example in examples:
        attached.model.zero_grad()
        ids = torch.from_numpy(example.ids)[None]
        scores = torch.log_softmax(attached.model(input_ids=ids).logits[0, -ids.shape[1] :].float(), -1)
        weights = torch.from_numpy(example.weights)[1:]
        (-(scores[:-1].gather(1, ids[0, 1:, None])[:, 0] * weights).sum() / weights.sum()).backward()
        named = [attached.parameters[name] for name in attached.layout.names]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in named]
        rows.append(torch.cat([g.reshape(-1) for g in grads]).double().numpy())
        attached.model.zero_grad()
    return np.stack(rows)


def dense(attached, rows, count):
    sizes = attached.layout.sizes.tolist()
    parts = [torch.zeros(count, n) if r is None else r for r, n in zip(rows, sizes, strict=True)]
    return torch.cat(parts, dim=1).double().numpy()


def by_engines(attached, examples):
    """The rows of the loop, and those of the batched engine and of Opacus' hooks where they serve."""
    batch, count = collate(examples, 0), len(examples)
    with steady(attached.model):
        loop = [dense(attached, unit_row(attached, batch.part(i, i + 1)), 1) for i in range(count)]
        found = [np.concatenate(loop)]
        for name, hooks in HOOKS.items():
            if serves(attached, name):
                rows = batched_rows(attached, batch, bounds_of(None, count), hooks)
                found.append(dense(attached, rows, count))
    return found


def serves(attached, name):
    """Whether the gates let an engine pass that reads many records at once."""
    try:
        return engine_of(attached, name).name == name
    except PrivacyError:
        return False


def assert_rows_equal(found, expected, tolerance=1e-5):
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() <= tolerance


@contextmanager
def checkpointing(attached, reentrant):
    model = attached.model.get_base_model()
    if reentrant is not None:
        with quiet():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
    model.train()
    try:
        yield
    finally:
        if reentrant is not None:
            with quiet():
                model.gradient_checkpointing_disable()
            model.disable_input_require_grads()
        model.eval()


@pytest.mark.parametrize("kind", CHECKPOINTING)
@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
@pytest.mark.parametrize("key", ADAPTER_METHODS.shipped)
def test_every_method_equals_the_naive_loop(tiny_base, key, quantisation, kind):
    method, _, aggregation = key.partition("/")
    settings = {"method": method, "rank": 4} | ({"aggregation": aggregation} if aggregation else {})
    attached = attach(
        tiny_base("llama", quantisation=quantisation), AdapterConfig(skip_layers=(), **settings), seed=0
    )
    values = np.random.default_rng(1).normal(0, 0.05, attached.layout.size)
    attached.load(attached.initial() + values.astype(np.float32))
    examples = examples_of(4)
    with steady(attached.model):
        expected = naive(attached, examples)
        per_example_loss(attached.model, collate(examples, 0))  # probes the head, which reentrant warns about
    with checkpointing(attached, CHECKPOINTING[kind]):
        assert engine_of(attached).name == ADAPTER_METHODS[key].traits.dp
        # Opacus sees the first pass as well as the recomputed one, unless the first kept no graph
        opacus = ADAPTER_METHODS[key].traits.dp == "batched" and kind != "non-reentrant"
        assert serves(attached, "opacus") == opacus
        for found in by_engines(attached, examples):
            assert_rows_equal(found, expected)
    assert all(p.requires_grad and p.grad is None for p in attached.parameters.values())


@dataclass(frozen=True)
class Toy:
    model: object
    layout: Layout
    parameters: dict


def toy_of(config, **changes):
    """An adapter of peft, as anybody may configure it, on a tiny Llama."""
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, max_position_embeddings=64, pad_token_id=0, **shape))
    for name, value in changes.items():
        setattr(base.config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return Toy(model, Layout.of(parameters), parameters)


def foreign():
    import peft

    causal = {"task_type": "CAUSAL_LM"}
    lora = {"r": 3, "target_modules": ["q_proj", "v_proj"], **causal}
    masks = {"cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}
    return {
        "prompt tuning": (peft.PromptTuningConfig(num_virtual_tokens=4, **causal), "loop"),
        "p-tuning": (
            peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=8, **causal),
            "loop",
        ),
        "CPT": (peft.CPTConfig(cpt_token_ids=[1, 2, 3], **masks, **causal), "loop"),
        "aLoRA": (peft.LoraConfig(alora_invocation_tokens=INVOCATION, **lora), "loop"),
        "DoRA": (peft.LoraConfig(use_dora=True, **lora), "loop"),
        "LILY": (peft.LilyConfig(**lora), "loop"),
        "prefix tuning": (peft.PrefixTuningConfig(num_virtual_tokens=4, **causal), "batched"),
        "trained embedding": (peft.LoraConfig(modules_to_save=["embed_tokens"], **lora), "batched"),
        "trained head": (peft.LoraConfig(modules_to_save=["lm_head"], **lora), "batched"),
    }


FOREIGN = (
    "prompt tuning",
    "p-tuning",
    "CPT",
    "aLoRA",
    "DoRA",
    "LILY",
    "prefix tuning",
    "trained embedding",
    "trained head",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_no_method_of_peft_is_silently_wrong(name):
    """Opacus clips the first four wrongly without a word; here they end at the loop, with a reason."""
    config, engine = foreign()[name]
    attached, examples = toy_of(config), examples_of(4)
    chosen = engine_of(attached)
    assert chosen.name == engine and chosen.reason
    with steady(attached.model):
        expected = naive(attached, examples)
    for found in by_engines(attached, examples):
        assert_rows_equal(found, expected)
    norms = np.linalg.norm(expected, axis=1)
    clip = float(np.median(norms))
    total, _ = clipped_sum(attached, collate(examples, 0), clip)
    wanted = (expected * np.minimum(1, clip / norms)[:, None]).sum(0)
    np.testing.assert_allclose(total, wanted, atol=1e-5 * np.linalg.norm(wanted))
    if engine == "loop":
        for wanted in HOOKS:
            refusal = rf"run\.engine = '{wanted}' is wrong here: .*; set 'auto' or 'loop'"
            with pytest.raises(PrivacyError, match=refusal):
                engine_of(attached, wanted)


def test_opacus_counts_the_padding_token_of_a_trained_embedding():
    attached = toy_of(foreign()["trained embedding"][0])
    assert engine_of(attached).name == "batched"
    with pytest.raises(PrivacyError, match="Opacus counts the padding token of a trained embedding"):
        engine_of(attached, "opacus")


def test_hooks_of_opacus_leave_a_model_as_it_was():
    attached, batch = toy_of(lora()), collate(examples_of(4), 0)
    engine = engine_of(attached, "opacus")
    states = [vars(module).keys() for module in attached.model.modules()]
    clipped_sum(attached, batch, 1.0, engine=engine)
    assert [vars(module).keys() for module in attached.model.modules()] == states
    for module in attached.model.modules():
        assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks
    for parameter in attached.model.parameters():
        assert parameter.grad is None and not vars(parameter)


def lora(**settings):
    from peft import LoraConfig

    return LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings)


def test_experts_are_left_to_the_loop():
    assert "experts" in engine_of(toy_of(lora(), num_local_experts=4)).reason
    assert engine_of(toy_of(lora(), num_local_experts=1)).name == "batched"


def test_batch_normalisation_is_left_to_the_loop():
    attached = toy_of(lora())
    attached.model.get_base_model().add_module("after", torch.nn.BatchNorm1d(16))
    assert "batch normalisation" in engine_of(attached).reason


def test_outliers_of_int8_are_left_to_the_loop(monkeypatch):
    """The layers of a card, where the outlier columns are chosen over a whole batch."""
    from fedpeft.training.dp import engine_selection

    attached = toy_of(lora())
    monkeypatch.setattr(engine_selection, "_outlier_threshold", lambda module: 6.0)
    parameter = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    monkeypatch.setattr(type(attached.model), "parameters", lambda self, recurse=True: iter([parameter]))
    assert (
        engine_selection._coupling(attached.model)
        == "int8 with an outlier threshold couples the examples of a batch"
    )


class HalfBatch(torch.nn.Module):
    """Adds the mean over the batch to what it passes on, to a degree that no norm of one example shows."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x)
        return out + 0.1 * (out.mean(dim=0, keepdim=True) - out.detach().mean(dim=0, keepdim=True))


def test_a_changed_model_is_judged_again():
    """The forward values do not change at all; only gradients flow from one example to another."""
    attached = toy_of(lora())
    assert engine_of(attached).name == "batched"
    layer = attached.model.get_base_model().model.layers[0]
    layer.mlp = HalfBatch(layer.mlp)
    assert engine_of(attached).name == "loop"
    layer.mlp = layer.mlp.inner
    assert engine_of(attached).name == "batched"


def test_changed_trainables_are_judged_again():
    attached = toy_of(lora())
    assert engine_of(attached).name == "batched"
    name, norm = next((n, p) for n, p in attached.model.named_parameters() if n.endswith("norm.weight"))
    norm.requires_grad_(True)
    parameters = {**attached.parameters, name: norm}
    wider = Toy(attached.model, Layout.of(parameters), parameters)
    assert engine_of(wider).name == "loop"
    with pytest.raises(PrivacyError, match="no clip covers it"):
        clipped_sum(attached, collate(examples_of(2), 0), 1.0)


def test_the_loop_is_taken_when_it_is_asked_for():
    attached = toy_of(lora())
    assert engine_of(attached, "loop").name == "loop"
    for wanted in HOOKS:
        assert engine_of(attached, wanted).name == wanted


def test_an_adapter_that_no_token_wakes_has_no_gradient():
    attached, asleep = toy_of(foreign()["aLoRA"][0]), Example(np.arange(10, 18), np.ones(8, np.float32))
    batch = collate([asleep, *examples_of(2)], 0)
    total, norms = clipped_sum(attached, batch, 0.1)
    assert norms[0] == 0 and (norms[1:] > 0).all()
    np.testing.assert_array_equal(total, clipped_sum(attached, batch.part(1, 3), 0.1)[0])
