"""LoRA with a frozen B: random, or rows of the output embeddings of given tokens."""

from functools import partial

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from fedpeft.adapters import attach, detach, export
from fedpeft.bases import load_base
from fedpeft.config import load_config
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.errors import ConfigError

from .trained_values import logits_of, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
TOKENS = ("<|im_start|>", 9)
ROWS = [4, 9]
_logits, _moved = partial(logits_of, torch.tensor([[1, 4, 9, 20, 33, 4, 8]])), partial(moved, 0.05)


@pytest.fixture
def adapter(inputs):
    """An adapter of the inputs' Llama with a frozen B."""

    def made(name="llama", **settings):
        base = load_base(BaseConfig.model_validate({"model": str(inputs.base(name)), "device": "cpu"}))
        chosen = {"rank": 2, "output_tokens": TOKENS, "target_modules": ("down_proj",), **settings}
        return attach(base, AdapterConfig(aggregation="frozen_b", skip_layers=(), **chosen), 3)

    yield made
    detach()


def test_b_points_at_the_rows_of_the_tokens_and_does_not_move(adapter):
    attached = adapter()
    rows = attached.base.model.get_output_embeddings().weight[ROWS].float()
    expected = [tensor.detach().clone() for tensor in attached.frozen.values()]
    for tensor in expected:
        factors = tensor.T / rows
        assert (
            factors == factors.flatten()[0]
        ).all()  # one factor for all values, so the same bits everywhere
        assert np.log2(float(factors.flatten()[0])).is_integer()
        assert 0.5 < float(tensor.norm(dim=0).mean()) < 2
    attached.load(_moved(attached))
    attached.reset()
    assert all(torch.equal(a, b) for a, b in zip(attached.frozen.values(), expected, strict=True))


def test_only_a_is_trained_and_starts_at_the_base(adapter):
    attached = adapter()
    assert all(name.endswith("down_proj.lora_A.weight") for name in attached.layout.names)
    assert not attached.initial().any()


def test_a_folder_is_plain_lora_and_peft_computes_the_same(adapter, tmp_path):
    attached = adapter()
    attached.load(_moved(attached))
    expected = _logits(attached.model)
    export(attached, tmp_path / "out")
    assert {name.rsplit(".", 2)[1] for name in load_file(tmp_path / "out/adapter_model.safetensors")} == {
        "lora_A",
        "lora_B",
    }
    detach()
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(_logits(model), expected, atol=1e-5)


def test_without_tokens_b_follows_from_the_seed(adapter):
    attached = adapter(output_tokens=(), rank=3, target_modules=())
    values = {name: tensor.clone() for name, tensor in attached.frozen.items()}
    assert all(tensor.any() for tensor in values.values())
    again = adapter(output_tokens=(), rank=3, target_modules=())
    assert all(torch.equal(values[name], tensor) for name, tensor in again.frozen.items())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rank": 4}, "names 2 tokens, and adapter.rank is 4: set adapter.rank = 2"),
        ({"target_modules": ("up_proj",)}, "writes nothing of the width of the embeddings"),
        ({"output_tokens": ("<|im_strat|>", 9)}, "adapter.output_tokens: '<|im_strat|>' is no token"),
    ],
)
def test_what_cannot_be_says_so_and_leaves_the_base_alone(adapter, settings, line):
    with pytest.raises(ConfigError, match="(?s).*" + line.replace("|", r"\|")):
        adapter(**settings)
    base = adapter().base
    detach()
    assert not hasattr(base.model, "peft_config")


def test_no_other_mode_takes_output_tokens():
    with pytest.raises(ConfigError, match=r"adapter\.aggregation = 'frozen_b'"):
        load_config(None, ('adapter.output_tokens=["a"]',))


def test_an_audit_covers_it_with_its_attacks_on_labels_and_on_rows_of_inputs(adapter):
    """What points at answers shows answers, which are attacked; nothing else is unread."""
    from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of_gradient

    known = knowledge_of_gradient(adapter())
    assert known.unread == "" and known.rows is not None and known.rows.inputs == "lora_A"
