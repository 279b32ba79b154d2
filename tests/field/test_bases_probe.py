"""What training takes for granted of a base is looked at when it is loaded, before anything is written."""

import json
import shutil
from types import SimpleNamespace

import pytest

from fedpeft.bases import load_base
from fedpeft.bases.load import load_apart
from fedpeft.bases.probe import positions_of
from fedpeft.config import load_config
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError, ConfigError
from fedpeft_clients.rounds.node_context import NodeContext

CLASSIFIER = {"base__task": "sequence-classification"}
PRIVATE = {"privacy__unit": "record", "privacy__epsilon": 8, "privacy__public_records": 16}


@pytest.mark.parametrize(
    ("base", "changes", "code", "words"),
    [
        # huggingface/transformers#48745, #12704, #10564: encoders that are no causal models see the answers
        ("bert", {}, 4, ("a later token changes the logits of earlier ones", "decoder")),
        ("bert", PRIVATE, 4, ("a later token changes",)),
        ("xlnet", {}, 4, ("a later token changes",)),
        ("xlnet", PRIVATE, 4, ("a later token changes",)),
        # getainode/ainode#186, huggingface/peft#1402: a run that learns nothing and says done
        ("nan", {}, 4, ("logits are not finite in float32", "get it again")),
        ("nan", PRIVATE, 4, ("logits are not finite in float32",)),
        ("hot-fp16", {"base__dtype": "float16"}, 4, ("not finite in float16", "'float32'")),
        # huggingface/transformers#14243, #1726: 514 positions of RoBERTa mean 512 tokens, 18 mean 17
        ("gpt2-16", {}, 2, ("data.max_length = 256", "16 positions", "at most 16")),
        ("roberta514", {**CLASSIFIER, "data__max_length": 18}, 2, ("17 positions", "at most 17")),
        ("llama", {"data__max_length": 2048}, 2, ("data.max_length = 2048", "512 positions")),
        ("xlnet", {"base__gradient_checkpointing": "true"}, 4, ("cannot recompute", "false")),
    ],
)
def test_a_base_that_training_would_misread_is_refused(
    fedpeft, settings, tmp_path, base, changes, code, words
):
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(base=base, **changes))
    assert done.code == code
    assert all(word in done.error for word in words), done.error
    assert not (tmp_path / "run").exists()


def test_all_positions_of_a_roberta_hold_a_token(fedpeft, settings, tmp_path):
    options = settings(base="roberta514", data__max_length=17, adapter__method="lora", **CLASSIFIER)
    assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options).code == 0


def test_a_padding_token_beyond_the_embeddings_is_replaced(fedpeft, settings, tmp_path):
    """meta-llama/llama-cookbook#189: padding bears no weight, so any token does."""
    assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(base="padid")).code == 0


def test_a_tokenizer_of_another_base_is_refused(inputs, tmp_path):
    """huggingface/tokenizers#1609, huggingface/transformers#28393, nomic-ai/gpt4all#414."""
    folder = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["foreign"] = 102
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(BaseModelError, match="its tokenizer has 103 ids, its embeddings 102"):
        load_base(BaseConfig(model=str(folder), device="cpu"))


@pytest.mark.parametrize("base", ["llama", "tied", "mamba", "qwen3-moe", "gemma3-mm", "roformer", "gpt2-16"])
def test_bases_that_hold_all_of_it_are_loaded(inputs, base):
    load_base(BaseConfig(model=str(inputs.base(base)), device="cpu"))


def test_a_base_for_work_of_its_own_is_looked_at_too(inputs):
    """Evaluating and merging load a base that nobody shares."""
    with pytest.raises(BaseModelError, match="later token"):
        load_apart(BaseConfig(model=str(inputs.base("bert")), device="cpu"))


def test_a_base_that_is_loaded_already_is_asked_for_its_positions_again(inputs):
    config = BaseConfig(model=str(inputs.base("gpt2-16")), device="cpu")
    assert positions_of(load_base(config, longest=16).model) == 16
    with pytest.raises(ConfigError, match="at most 16"):
        load_base(config, longest=17)


def test_a_node_looks_at_its_base_too(inputs):
    """It has the base from elsewhere, and trusts no coordinator's word for it."""

    def context(name):
        base = BaseConfig(model=str(inputs.base(name)), device="cpu")
        return NodeContext(SimpleNamespace(base=base, labels=(), config=load_config()))

    with pytest.raises(BaseModelError, match="later token"):
        _ = context("bert").base
    with pytest.raises(ConfigError, match="at most 16"):
        _ = context("gpt2-16").base


def test_what_looks_at_other_records_of_a_batch_is_refused(inputs, monkeypatch):
    """A record's loss would depend on its neighbours, and so no clip would bound what it does."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def coupled(self, input_ids, **settings):
        output = forward(self, input_ids=input_ids, **settings)
        output.logits = output.logits + 0.01 * len(input_ids)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", coupled)
    with pytest.raises(BaseModelError, match="other records in the batch"):
        load_base(BaseConfig(model=str(inputs.base("chatml")), device="cpu"))


def test_a_base_that_needs_more_than_text_is_refused(inputs, monkeypatch):
    from transformers import LlamaForCausalLM

    def picky(self, input_ids, **settings):
        raise ValueError("pixel_values is missing\nand more")

    monkeypatch.setattr(LlamaForCausalLM, "forward", picky)
    with pytest.raises(BaseModelError, match="makes no pass over 8 made-up tokens") as refusal:
        load_base(BaseConfig(model=str(inputs.base("think")), device="cpu"))
    assert "\n" not in str(refusal.value)
