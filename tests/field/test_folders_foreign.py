"""Adapter folders of other trainers, other peft versions and other settings, against plain peft."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fedpeft.bases.load import quiet

from .input_adapters import CAUSAL, lora, save_adapter, set_keys
from .input_bases import tokenizer
from .test_folders_loaded import figures, logits, merged

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attn|mlp).*?(?:q_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attn|mlp)\.(?:(?:q_proj|v_proj)))"
)
CONFIGS = {
    "no task": lora(task_type=None),
    "unsloth": lora(target_modules=UNSLOTH),
    "look-ahead": lora(target_modules=r"^(?!.*visual).*(?:q_proj|k_proj).*"),
    "left out": lora(target_modules="all-linear", exclude_modules=r".*layers\.0\..*"),
    "replicated": lora(layer_replication=[[0, 2], [1, 2]]),
    "head and embeddings": lora(target_modules=["embed_tokens", "lm_head"]),
}


def copy(inputs, tmp_path, name="good", **changes):
    folder = shutil.copytree(inputs.adapter(name), tmp_path / "adapter")
    set_keys(folder, **changes)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("base", ["llama", "tied"])
def test_what_peft_loads_is_merged_into_what_it_computes(fedpeft, inputs, tmp_path, name, base):
    """huggingface/peft#1707, PR#707; vllm-project/vllm PR#9275; hiyouga/LlamaFactory PR#10790."""
    with quiet():
        save_adapter(tmp_path / "adapter", inputs.base(base), CONFIGS[name])
    out = merged(fedpeft, tmp_path / "adapter", tmp_path)
    assert torch.allclose(logits(out), logits(inputs.base(base), tmp_path / "adapter"), atol=1e-5)
    assert figures(fedpeft, tmp_path / "adapter", inputs.data("held.jsonl"))["loss"] > 0


def test_the_class_that_peft_names_tells_the_task(fedpeft, inputs, tmp_path):
    """huggingface/peft PR#707, #1744: without a task type peft writes the class of the base."""
    kind, name = transformers.AutoModelForSequenceClassification, "AutoModelForSequenceClassification"
    config = lora(task_type=None, modules_to_save=["score"])
    with quiet():
        save_adapter(tmp_path / "adapter", inputs.base("llama"), config, kind=kind, num_labels=2)
    out = merged(fedpeft, tmp_path / "adapter", tmp_path)
    wanted = logits(inputs.base("llama"), tmp_path / "adapter", name)
    assert torch.allclose(logits(out, kind=name), wanted, atol=1e-5)
    mapping = {"base_model_class": "LlamaForTokenClassification", "parent_library": "transformers"}
    set_keys(tmp_path / "adapter", auto_mapping=mapping)
    done = fedpeft("adapter", "merge", tmp_path / "adapter", "-o", tmp_path / "out")
    assert "is for LlamaForTokenClassification" in done.error


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_of_another_encoding_is_read(fedpeft, inputs, tmp_path, encoding):
    """Editors of Windows write a mark before the text; plain peft refuses it, and the adapter is the same."""
    folder = copy(inputs, tmp_path)
    file = folder / "adapter_config.json"
    file.write_bytes(file.read_text().encode(encoding))
    out = merged(fedpeft, folder, tmp_path)
    assert torch.allclose(logits(out), logits(inputs.base("llama"), inputs.adapter("good")), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_whatever_type_the_factors_have_they_are_merged(fedpeft, inputs, tmp_path, kind):
    """huggingface/peft#2421."""
    folder = copy(inputs, tmp_path)
    weights = folder / "adapter_model.safetensors"
    save_file({name: value.to(kind) for name, value in load_file(weights).items()}, weights)
    out = merged(fedpeft, folder, tmp_path)
    assert torch.allclose(logits(out), logits(inputs.base("llama"), folder), atol=1e-5)


MISTAKES = {
    "list of types": ({"peft_type": ["LORA"]}, 2, "does not know the adapter type \"['LORA']\""),
    "list of tasks": ({"task_type": ["CAUSAL_LM"]}, 2, "is for ['CAUSAL_LM']"),
    "rank as text": ({"r": "4"}, 2, "r = '4' of adapter_config.json is no number"),
    "no alpha": ({"lora_alpha": None}, 2, "lora_alpha = None of adapter_config.json is no number"),
    "X-LoRA": ({"peft_type": "XLORA", "adapters": {"0": "/tmp/x"}}, 2, "names other adapters"),
    "text to invoke": ({"alora_invocation_tokens": ["x"]}, 2, "does not fit this base (ValueError: too many"),
    "long name": ({"base_model_name_or_path": "x" * 5000}, 4, "is not on this machine"),
    "no such user": ({"base_model_name_or_path": "~nobody-here/x"}, 4, "is not on this machine"),
    "home": ({"base_model_name_or_path": "~/no-such-model"}, 4, "is not on this machine"),
    "Windows": ({"base_model_name_or_path": "C:\\models\\llama"}, 4, "is not on this machine"),
    "itself": ({"base_model_name_or_path": "ADAPTER"}, 4, "it is an adapter: give its base"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("command", ["merge", "eval"])
def test_a_setting_that_cannot_be_is_one_line(fedpeft, inputs, tmp_path, name, command):
    """huggingface/peft#340; unslothai/unsloth#1061."""
    changes, code, cause = MISTAKES[name]
    folder = copy(inputs, tmp_path, **changes)
    if name == "itself":
        set_keys(folder, base_model_name_or_path=str(folder))
    options = ["--data", inputs.data("held.jsonl")] if command == "eval" else ["-o", tmp_path / "out"]
    done = fedpeft("adapter", command, folder, *options)
    assert cause in done.error and done.code == code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["merge", "eval"])
@pytest.mark.parametrize("config", ["poly", "several tasks"])
def test_a_method_that_needs_more_than_text_is_refused(fedpeft, inputs, tmp_path, command, config):
    """huggingface/peft#1030: peft asks for the task of each record."""
    configs = {
        "poly": peft.PolyConfig(r=4, n_tasks=2, n_skills=2, target_modules=["q_proj"], **CAUSAL),
        "several tasks": peft.MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=2, **CAUSAL),
    }
    with quiet():
        save_adapter(tmp_path / "adapter", inputs.base("llama"), configs[config])
    options = ["--data", inputs.data("held.jsonl")] if command == "eval" else ["-o", tmp_path / "out"]
    assert "task_ids" in fedpeft("adapter", command, tmp_path / "adapter", *options).error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_figures_come_of_weights_that_are_no_numbers(fedpeft, inputs, tmp_path, value):
    """getainode/ainode#186: a loss of null is no loss."""
    folder = copy(inputs, tmp_path)
    weights = folder / "adapter_model.safetensors"
    tensors = {
        name: tensor * value if "lora_B" in name else tensor for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights)
    done = fedpeft("adapter", "eval", folder, "--data", inputs.data("held.jsonl"))
    assert "its logits are not finite" in done.error


@pytest.mark.parametrize("command", ["merge", "eval"])
def test_tokens_without_embeddings_are_refused(fedpeft, inputs, tmp_path, command):
    """huggingface/peft#2898, #1300; unslothai/unsloth#1343: a grown tokenizer, and no embeddings saved."""
    folder = copy(inputs, tmp_path)
    grown = tokenizer()
    grown.add_tokens(["question", "held"])
    grown.save_pretrained(folder)
    options = ["--data", inputs.data("held.jsonl")] if command == "eval" else ["-o", tmp_path / "out"]
    done = fedpeft("adapter", command, folder, *options)
    assert "has 104 ids, base and adapter have 102 embeddings" in done.error
    assert not (tmp_path / "out").exists()


def test_a_padding_token_without_an_embedding_is_replaced(fedpeft, inputs, tmp_path):
    """sgl-project/sglang PR#17905; meta-llama/llama-cookbook#189: padding bears no weight."""
    folder = copy(inputs, tmp_path)
    tokenizer(extra_pad=True).save_pretrained(folder)
    own = figures(fedpeft, folder, inputs.data("held.jsonl"))
    assert own == figures(fedpeft, inputs.adapter("good"), inputs.data("held.jsonl"))


@pytest.mark.parametrize(
    "settings", [{"embed_tokens": True}, {"alora_invocation_tokens": [7]}, {"use_qalora": True}]
)
def test_the_weight_change_covers_embeddings_or_is_not_given(fedpeft, inputs, tmp_path, settings):
    """huggingface/peft#2777: factors of embeddings were left out: three times as much was no change."""
    with quiet():
        save_adapter(tmp_path / "a", inputs.base("llama"), CONFIGS["head and embeddings"])
    other = shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = other / "adapter_model.safetensors"
    save_file(
        {name: value * 3 if "embedding_B" in name else value for name, value in load_file(weights).items()},
        weights,
    )
    set_keys(other, **settings)
    change = json.loads(fedpeft("adapter", "diff", tmp_path / "a", other, "--json").out)["weight_change"]
    assert change is None if "embed_tokens" not in settings else change > 0.5
