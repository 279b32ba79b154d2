"""Mistakes in base and settings: the documented exit code, one line with the cure, the run directory free.

They are what users of peft, transformers and Flower write into public bug reports; ``test_bases_*.py`` have
each kind, and the threads.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

SETTING, BASE, PRIVACY = 2, 4, 6
CLASSIFIER = {"base__task": "sequence-classification"}

SETTINGS = {
    "unknown section": ({"bse__model": "x"}, "unknown setting 'bse.model'"),
    "unknown key": ({"adapter__target_module": "q_proj"}, "'adapter.target_modules'"),
    "unknown method": ({"adapter__method": "lorra"}, "the nearest adapter method is 'lora'"),
    "mode of no method": ({"adapter__aggregation": "frozen-a"}, "'frozen_a'"),
    "module of no base": ({"adapter__target_modules": "q_prj"}, "nearest: q_proj"),
    "module of another family": ({"adapter__target_modules": '["c_attn"]'}, "fits no linear module"),
    "head as a target": ({"adapter__target_modules": "lm_head"}, "is in the output head"),
    "head of a language model": ({"adapter__train_head": "true"}, "base.task = 'sequence-classification'"),
    "every layer skipped": ({"adapter__skip_layers": "[0, 1]"}, "change adapter.target_modules"),
    "rank 0": ({"adapter__rank": 0}, "adapter.rank"),
    "rank as text": ({"adapter__rank": "sixteen"}, "adapter.rank"),
    "negative alpha": ({"adapter__alpha": -1}, "adapter.alpha"),
    "ranks without an organisation": (
        {
            "adapter__ranks": "{nobody = 4}",
            "adapter__aggregation": "stack",
            "exchange__down__codec": "dense-fp32",
            "exchange__up__error_feedback": "false",
        },
        "adapter.ranks names 'nobody'",
    ),
    "rank of miss above the inputs": (
        {"adapter__method": "miss", "adapter__rank": 64},
        "miss needs at most that",
    ),
    "attack of no name": ({"audit__attacks": "sequence"}, "audit.attacks"),
    "attack misspelt": ({"audit__attacks": '["span", "sequence"]'}, "the nearest attack is 'sequences'"),
    "round 0": ({"audit__rounds": "[0]"}, "audit.rounds names 0"),
    "round beyond the last": ({"audit__rounds": "[2]"}, "audit.rounds names 2"),
    "too long for its positions": ({"data__max_length": 2048}, "at most 512"),
    "max_length of 2": ({"data__max_length": 2}, "data.max_length"),
    "dtype of a GPU's name": ({"base__dtype": "bf16"}, "base.dtype"),
    "quantisation of another library": ({"base__quantisation": "gptq"}, "base.quantisation"),
    "task of another name": ({"base__task": "SEQ_CLS"}, "base.task"),
    "revision of a folder": ({"base__revision": "main"}, "leave base.revision out"),
    "learning rate 0": ({"federation__lr": 0}, "federation.lr"),
    "quorum above the nodes": ({"federation__quorum": 5}, "exceeds federation.nodes"),
    "two noises": (
        {
            "privacy__unit": "record",
            "privacy__epsilon": 8,
            "privacy__noise_multiplier": 1,
            "privacy__public_records": 16,
        },
        "exactly one of privacy.epsilon",
    ),
    "epsilon without a unit": ({"privacy__epsilon": 8}, "privacy.unit"),
    "rows of a partition": ({"data__partition": "dirichlet"}, "data.partition_column"),
}

FIELD_BASES = {
    "an encoder": ("bert", {}, "later token"),
    "a permutation model": ("xlnet", {}, "later token"),
    "weights that are not numbers": ("nan", {}, "not finite"),
    "an overflow": ("hot-fp16", {"base__dtype": "float16"}, "not finite in float16"),
    "no checkpointing": ("xlnet", {"base__gradient_checkpointing": "true"}, "cannot recompute"),
    "another hash": ("llama", {"base__sha256": "0" * 64}, "get the agreed base"),
    "no such device": ("llama", {"base__device": "cuda:7"}, "'auto'"),
    "a device of no kind": ("llama", {"base__device": "gpu"}, "'cpu'"),
    "a typo in the path": ("lama", {}, "does not exist"),
}


@pytest.fixture
def refused(fedpeft, settings, tmp_path):
    """Asserts that a run is refused, and that its directory can be taken by the next."""

    def check(code, words, **changes):
        done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(**changes))
        assert done.code == code, done.err
        assert words in done.error, done.error
        assert len(done.error) < 500
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mistake_in_the_settings(refused, name):
    changes, words = SETTINGS[name]
    refused(SETTING, words, **changes)


@pytest.mark.parametrize("name", FIELD_BASES)
def test_a_base_that_cannot_be_used(refused, name):
    base, changes, words = FIELD_BASES[name]
    refused(BASE, words, base=base, **changes)


def _no_config(folder):
    (folder / "config.json").unlink()


def _config_of_no_model(folder):
    (folder / "config.json").write_text("{}")


def _broken_config(folder):
    (folder / "config.json").write_text("{")


def _adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _gguf_alone(folder):
    (folder / "model.safetensors").rename(folder / "tiny.Q4_1.gguf")


def _cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled_code(folder):
    """A pickle that is no tensor: opening it would run what is in it."""
    (folder / "model.safetensors").unlink()
    torch.save(pytest.approx, folder / "pytorch_model.bin")


def _no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def _foreign_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["foreign"] = 102
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _quantised_elsewhere(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )


def _own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))


DAMAGED = {
    _no_config: "holds no config.json",
    _config_of_no_model: "no 'model_type'",
    _broken_config: "is no JSON object",
    _adapter: "it is an adapter: give its base",
    _no_weights: "holds no weights",
    _gguf_alone: "fedpeft base import",
    _cut_weights: "cannot be loaded as causal-lm",
    _missing_tensor: "'model.norm.weight' is missing",
    _pickled_code: "cannot be loaded as causal-lm",
    _no_tokenizer: "no usable tokenizer",
    _foreign_tokenizer: "103 ids",
    _missing_shard: "is no .safetensors file beside it",
    _quantised_elsewhere: "supported are none, int8 and nf4",
    _own_code: "code of its own (auto_map), which is never run",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: damage.__name__.strip("_"))
def test_a_base_folder_that_is_not_whole(refused, inputs, tmp_path, damage):
    folder = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    damage(folder)
    refused(BASE, DAMAGED[damage], base__model=folder)


def test_positions_of_a_roberta(refused):
    refused(SETTING, "at most 17", base="roberta514", data__max_length=18, **CLASSIFIER)


def test_noise_that_swamps_the_run(refused):
    protected = {"privacy__unit": "record", "privacy__epsilon": 0.1, "privacy__public_records": 16}
    refused(PRIVACY, "privacy.max_noise_to_signal", **protected)


def test_after_a_mistake_the_same_command_mended_runs(fedpeft, settings, tmp_path):
    for rank, code in (("0", SETTING), ("4", 0)):
        options = settings(adapter__rank=rank)
        assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options).code == code


def test_records_that_are_longer_than_an_evaluated_base(fedpeft, inputs):
    """huggingface/transformers#14243: an IndexError of 117 lines."""
    done = fedpeft("adapter", "eval", inputs.adapter("gpt2"), "--data", inputs.data("long.jsonl"))
    assert done.code == SETTING
    assert "above the 16 positions" in done.error
