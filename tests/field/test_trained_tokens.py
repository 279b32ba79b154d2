"""Rows of the embeddings that are trained with the adapter: huggingface/peft#2376, #2399, #2864, PR#3514."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.adapters import attach, detach, export, merge
from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.aggregation import mean_step
from fedpeft.bases import load_base
from fedpeft.config import load_config
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.data import Example, collate
from fedpeft.errors import ConfigError
from fedpeft.exchange import Decoded
from fedpeft.training.dp.engine_selection import engine_of
from fedpeft.training.dp.per_example import clipped_sum
from fedpeft.training.loss import per_example_loss

from .trained_values import logits_of, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TOKENS = ("<|im_start|>", 9)
ROWS = [4, 9]
IDS = torch.tensor([[1, 4, 9, 20, 33, 4, 8]])
_logits, _moved = partial(logits_of, IDS), partial(moved, 0.05)
CLASSIFIERS = ("bert", "roberta514")
BASES = {
    "llama": "model.embed_tokens",
    "tied": "model.embed_tokens",
    "gpt2-16": "transformer.wte",
    "gemma3-mm": "model.language_model.embed_tokens",
    "bert": "bert.embeddings.word_embeddings",
    "roberta514": "roberta.embeddings.word_embeddings",
}


def _settings(inputs, name, **settings):
    task = "sequence-classification" if name in CLASSIFIERS else "causal-lm"
    return BaseConfig.model_validate(
        {"model": str(inputs.base(name)), "device": "cpu", "task": task, **settings}
    )


@pytest.fixture
def rows(inputs):
    """A base of the inputs with an adapter and two trained tokens; a classifier's head is trained too."""

    def made(name="llama", **settings):
        is_classifier = name in CLASSIFIERS
        base = load_base(_settings(inputs, name, **settings), 2 if is_classifier else None)
        config = AdapterConfig(rank=4, skip_layers=(), trainable_tokens=TOKENS, train_head=is_classifier)
        return attach(base, config, 3)

    yield made
    detach()


def _key(name):
    return f"{BASES[name]}.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize("name", BASES)
def test_rows_start_as_the_base_has_them_and_leave_no_trace(inputs, rows, name):
    base = rows(name).base
    detach()
    modules, expected = dict(base.model.named_modules()), _logits(base.model)
    attached = rows(name)
    assert attached.layout.shapes[attached.layout.names.index(_key(name))] == (2, 32)
    assert torch.allclose(_logits(attached.model), expected, atol=1e-6)
    assert f"trains 2 rows of {BASES[name]}" in attached.spec.coverage.text
    assert REVEALED["trainable_tokens"] in attached.spec.coverage.text
    attached.load(_moved(attached))
    assert not torch.allclose(_logits(attached.model), expected, atol=1e-3)
    detach()
    assert torch.equal(_logits(base.model), expected)
    assert dict(base.model.named_modules()) == modules


def test_the_mean_of_updates_is_the_mean_of_rows(rows):
    attached = rows("tied")
    start, weights, ends, contributions = attached.initial(), (1.0, 2.0, 0.5), [], []
    for node, weight in enumerate(weights):
        end = _moved(attached, node)
        contributions.append((str(node), weight, Decoded(attached.layout, end - start)))
        ends.append(attached.layout.split(end)[_key("tied")].astype(np.float64) * weight)
    attached.load((start + mean_step(start.size, contributions)).astype(np.float32))
    for module in (attached.model.get_input_embeddings(), attached.model.get_output_embeddings()):
        assert np.allclose(module.weight[ROWS].detach().numpy(), sum(ends) / sum(weights), atol=1e-6)


@pytest.mark.parametrize("name", BASES)
def test_a_records_gradient_is_that_of_the_record_alone(rows, name):
    attached = rows(name)
    attached.load(_moved(attached))
    rng = np.random.default_rng(0)
    examples = [
        Example(np.r_[rng.integers(5, 100, n), 4, 9], np.ones(n + 2, np.float32), n % 2) for n in (5, 10, 7)
    ]
    batch = collate(examples, attached.base.pad_id)
    parameters = [attached.parameters[name] for name in attached.layout.names]
    gradients = []
    for example in examples:
        loss = per_example_loss(attached.model, collate([example], attached.base.pad_id)).sum()
        parts = torch.autograd.grad(loss, parameters)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    norms = np.array([np.linalg.norm(row) for row in gradients])
    clip = float(np.median(norms))
    expected = sum(row * min(1.0, clip / norm) for row, norm in zip(gradients, norms, strict=True))
    chosen = engine_of(attached, longest=12)
    assert chosen.name == "loop"
    total, got = clipped_sum(attached, batch, clip, engine=chosen)
    assert np.allclose(got, norms, rtol=1e-4)
    assert np.allclose(total, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", BASES)
def test_plain_peft_loads_trained_rows_and_they_are_merged(inputs, rows, tmp_path, name):
    import peft
    import transformers

    kind = "SequenceClassification" if name in CLASSIFIERS else "CausalLM"
    attached = rows(name)
    attached.load(_moved(attached))
    expected = _logits(attached.model)
    export(attached, tmp_path / "a")
    detach()
    plain = getattr(peft, f"AutoPeftModelFor{kind}").from_pretrained(tmp_path / "a")
    assert torch.allclose(_logits(plain), expected, atol=2e-5)
    merge(tmp_path / "a", tmp_path / "m", _settings(inputs, name))
    merged = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "m")
    assert torch.allclose(_logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["tied", "bert"])
@pytest.mark.parametrize(
    "settings", [{"quantisation": "nf4"}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}]
)
def test_rows_are_trained_in_float32_on_any_base(rows, name, settings):
    attached = rows(name, **settings)
    attached.load(_moved(attached))
    mask = torch.ones_like(IDS)
    attached.model(input_ids=IDS, attention_mask=mask, use_cache=False).logits.square().mean().backward()
    assert all(parameter.dtype == torch.float32 for parameter in attached.parameters.values())
    assert all(parameter.grad.any() for parameter in attached.parameters.values())


EXACT = {
    "exchange__up__codec": "dense-fp32",
    "exchange__up__error_feedback": "false",
    "exchange__down__codec": "dense-fp32",
    "exchange__down__error_feedback": "false",
}
PRIVATE = {
    "privacy__unit": "record",
    "privacy__epsilon": 8,
    "privacy__public_records": 16,
    "privacy__max_noise_to_signal": 1e9,
}


@pytest.mark.parametrize("more", [EXACT, PRIVATE], ids=["open", "private"])
def test_a_federation_trains_the_tokens_of_its_template(fedpeft, settings, inputs, tmp_path, more):
    """A token's name in a template is the token; in a record's text it is text."""
    run = tmp_path / "run"
    options = settings(
        base="tied",
        adapter__trainable_tokens='["<|im_start|>"]',
        data__template="<|im_start|>{prompt}{completion}",
        **more,
    )
    done = fedpeft("simulate", "--out", run, *options)
    assert done.code == 0, done.err
    assert REVEALED["trainable_tokens"] in done.out + done.err
    base = load_base(_settings(inputs, "tied"))
    before = base.model.get_input_embeddings().weight[4]
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    row = tensors[f"base_model.model.{_key('tied')}"][0]
    assert not torch.allclose(row, before, atol=1e-5)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": [4]}
    assert fedpeft("adapter", "eval", run).code == 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"adapter__trainable_tokens": '["<|im_strat|>"]'}, "nearest: '<|im_start|>'"),
        ({"adapter__trainable_tokens": '["hello world"]'}, "add it to tokenizer and base first"),
        ({"adapter__trainable_tokens": "[102]"}, "no row among the 102 embeddings"),
        ({"adapter__trainable_tokens": "[-1]"}, "no row among the 102 embeddings"),
        ({"adapter__trainable_tokens": "[4]", "adapter__method": "miss"}, "adapter.aggregation = 'frozen_a'"),
    ],
)
def test_tokens_that_cannot_be_trained_cost_one_line(fedpeft, settings, tmp_path, changes, line):
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(**changes))
    assert done.code == 2
    assert line in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("<a>", ("<a>",)), ('["<a>", 5]', ("<a>", 5)), ("[7]", (7,)), ("12", (12,)), ('"12"', ("12",))],
)
def test_tokens_are_names_or_ids(text, tokens):
    assert load_config(overrides=[f"adapter.trainable_tokens={text}"]).adapter.trainable_tokens == tokens


def test_a_token_is_named_by_id_or_text_but_has_one_row(inputs):
    base = load_base(_settings(inputs, "llama"))
    attached = attach(base, AdapterConfig(trainable_tokens=("<|im_start|>", 4, "a")), 0)
    assert attached.spec.parts.tokens == tuple(sorted({4, base.tokenizer.convert_tokens_to_ids("a")}))
    detach()
    with pytest.raises(ConfigError, match="'aa' is no token"):
        attach(base, AdapterConfig(trainable_tokens=("aa",)), 0)
