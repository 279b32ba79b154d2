"""Every exchanged tensor is trained, whatever the base and method; classifiers with and without privacy."""

import numpy as np
import pytest
import torch
import transformers

from fedpeft.adapters import attach, detach
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.data import Example, collate
from fedpeft.training.dp.backward_passes import batched_rows, bounds_of, unit_row
from fedpeft.training.dp.engine_selection import engine_of
from fedpeft.training.loss import per_example_loss
from fedpeft.training.modes import steady

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
CLASSES = 2
SIZES = {
    "vocab_size": 102,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("base", ["llama", "gpt2-16", "gemma3-mm"])
@pytest.mark.parametrize("method", ["lora", "miss", "ia3"])
def test_every_exchanged_tensor_moves_where_activations_are_recomputed(
    fedpeft, settings, inputs, tmp_path, base, method
):
    """huggingface/transformers#42489, open-unlearning#178, microsoft/LoRA#120: gradients never arrive."""
    run = tmp_path / "run"
    exchange = {"exchange__up__codec": "dense-fp32", "exchange__up__error_feedback": "false"}
    down = {"exchange__down__codec": "dense-fp32", "exchange__down__error_feedback": "false"}
    options = settings(
        base=base,
        base__gradient_checkpointing="true",
        adapter__method=method,
        data__max_length=16,
        **exchange,
        **down,
    )
    assert fedpeft("simulate", "--quiet", "--out", run, *options).code == 0
    shared = load_base(BaseConfig(model=str(inputs.base(base)), device="cpu"))
    attached = attach(shared, AdapterConfig(method=method, rank=4, skip_layers=()), 0)
    with np.load(run / "state" / "final.npz") as state:
        (values,) = (state[name] for name in state.files if state[name].shape == (attached.layout.size,))
    moved = attached.layout.split(values - attached.initial())
    assert [name for name, change in moved.items() if not change.any()] == []
    detach()


def _modernbert():
    return transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig(**SIZES))


def _deberta():
    config = transformers.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return transformers.DebertaV2ForSequenceClassification(config)


@pytest.fixture
def classifier(inputs, tmp_path, monkeypatch):
    """A folder with a classifier and the tokenizer of the inputs; to compile anything is an error."""

    def compiled(*arguments, **settings):
        raise AssertionError("a compiler was called")

    monkeypatch.setattr(torch, "compile", compiled)

    def made(make):
        torch.manual_seed(0)
        make().save_pretrained(tmp_path / "base")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "base" / name).write_bytes((inputs.base("llama") / name).read_bytes())
        return tmp_path / "base"

    yield made
    detach()


def _examples():
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(5, 100, length), np.ones(length, np.float32), index % CLASSES)
        for index, length in enumerate((5, 11, 7))
    ]


@pytest.mark.parametrize("make", [_modernbert, _deberta])
def test_gradients_of_each_record_equal_the_naive_loops(classifier, make):
    """opacus#632, huggingface/transformers PR#35404: batched gradients silently wrong, or compiled."""
    settings = {"model": str(classifier(make)), "device": "cpu", "task": "sequence-classification"}
    base = load_base(BaseConfig.model_validate(settings), CLASSES)
    attached = attach(base, AdapterConfig(rank=4, skip_layers=()), 0)
    attached.load(
        attached.get() + 0.02 * np.random.default_rng(1).standard_normal(attached.layout.size, np.float32)
    )
    engine = engine_of(attached, longest=16)
    batch = collate(_examples(), base.pad_id)
    with steady(attached.model):
        loop = [_flat(unit_row(attached, batch.part(row, row + 1))) for row in range(len(batch))]
        naive = [_naive(attached, example, base.pad_id) for example in _examples()]
        rows = [list(loop)]
        if engine.name == "batched":
            rows.append(
                list(_flat_rows(batched_rows(attached, batch, bounds_of(None, len(batch))), len(batch)))
            )
    for computed in rows:
        for gradient, wanted in zip(computed, naive, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def _naive(attached, example, pad):
    """The gradient of one record, alone, by plain autograd."""
    loss = per_example_loss(attached.model, collate([example], pad)).sum()
    gradients = torch.autograd.grad(loss, [attached.parameters[name] for name in attached.layout.names])
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def _flat(rows):
    return torch.cat([row.reshape(-1) for row in rows])


def _flat_rows(rows, count):
    return torch.cat([row.reshape(count, -1) for row in rows], dim=1)


@pytest.mark.parametrize("make", [_modernbert, _deberta])
@pytest.mark.parametrize("private", [False, True])
def test_a_federation_of_classifiers_ends(fedpeft, settings, classifier, tmp_path, make, private):
    """climatepolicyradar/knowledge-graph#1120."""
    protected = {"privacy__unit": "record", "privacy__epsilon": 8, "privacy__public_records": 16}
    options = settings(
        base__model=classifier(make),
        base__task="sequence-classification",
        privacy__max_noise_to_signal=1e9,
        **(protected if private else {}),
    )
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
