"""What a GPU must do as the CPU does; needs CUDA: ``make test-gpu``."""

import numpy as np
import pytest
import torch

from fedpeft.adapters import attach, detach
from fedpeft.adapters.export import export
from fedpeft.adapters.merge import merge
from fedpeft.bases import forget_base, load_base
from fedpeft.config.models import AdapterConfig, BaseConfig, DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.evaluation.metrics import evaluate
from fedpeft.rng import stream
from fedpeft.training import LocalPlan, train_local
from fedpeft.training.dp.per_example import clipped_sum, engine_of

pytestmark = pytest.mark.gpu
RECORDS = [Record(f"the patient asked for letter {i}", [" red", " blue"][i % 2]) for i in range(24)]


@pytest.fixture
def on_gpu(tiny_model_folder):
    def make(quantisation="none", **settings):
        folder = str(tiny_model_folder("llama"))
        return load_base(BaseConfig(model=folder, device="cuda", quantisation=quantisation, **settings))

    yield make
    detach()
    forget_base()


def _examples(base):
    return tokenise(RECORDS, base.tokenizer, DataConfig())


@pytest.mark.parametrize("quantisation", ["none", "int8", "nf4"])
def test_training_on_a_quantised_base_lowers_the_loss(on_gpu, quantisation):
    base = on_gpu(quantisation)
    assert base.device.startswith("cuda") and base.dtype == "bfloat16"
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    examples = _examples(base)
    before = evaluate(attached, examples, None, base.tokenizer).loss
    train_local(attached, examples, LocalPlan(steps=20, batch_size=8, lr=2e-2), stream(0, 1, "a", "batches"))
    assert evaluate(attached, examples, None, base.tokenizer).loss < 0.9 * before
    assert {p.dtype for p in attached.parameters.values()} == {torch.float32}


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_per_example_gradients_pass_their_gates_in_float32(on_gpu, quantisation):
    base = on_gpu(quantisation, dtype="float32")
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    batch = collate(_examples(base)[:6], base.pad_id, base.device)
    assert engine_of(attached).name == "batched"
    total, norms = clipped_sum(attached, batch, 0.5)
    single = sum(clipped_sum(attached, batch.part(i, i + 1), 0.5)[0] for i in range(6))
    assert np.allclose(total, single, rtol=1e-3, atol=1e-5)
    assert len(norms) == 6


def test_the_same_values_give_the_same_loss_on_gpu_and_cpu(on_gpu, tiny_model_folder):
    base = on_gpu(dtype="float32")
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    values = stream(3, 0, "", "values").normal(0, 0.05, attached.layout.size).astype(np.float32)
    attached.load(values)
    on_card = evaluate(attached, _examples(base), None, base.tokenizer).loss
    detach()
    cpu = load_base(BaseConfig(model=str(tiny_model_folder("llama")), device="cpu"))
    attached = attach(cpu, AdapterConfig(skip_layers=(), rank=4), seed=0)
    attached.load(values)
    assert on_card == pytest.approx(evaluate(attached, _examples(cpu), None, cpu.tokenizer).loss, rel=1e-4)


def test_export_and_merge_from_a_gpu_base(on_gpu, tiny_model_folder, tmp_path):
    base = on_gpu("nf4")
    attached = attach(base, AdapterConfig(skip_layers=(), rank=4), seed=0)
    export(attached, tmp_path / "adapter")
    cfg = BaseConfig(model=str(tiny_model_folder("llama")), device="cuda", quantisation="nf4")
    merge(tmp_path / "adapter", tmp_path / "merged", cfg)
    assert (tmp_path / "merged" / "config.json").exists()
