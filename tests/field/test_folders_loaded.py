"""Adapter folders as peft and others write them, through merge and eval."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.bases.load import quiet

from .input_adapters import lora, save_adapter, set_keys

IDS = torch.arange(5, 21)[None]


def logits(base, adapter=None, kind="AutoModelForCausalLM", rows=None):
    """What transformers and plain peft compute."""
    import peft
    import transformers

    with quiet(), torch.no_grad():
        model = getattr(transformers, kind).from_pretrained(base)
        if rows:
            model.resize_token_embeddings(rows)
        model = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
        return model.eval()(input_ids=IDS).logits


def merged(fedpeft, adapter, tmp_path):
    done = fedpeft("adapter", "merge", adapter, "-o", tmp_path / "merged")
    assert done.code == 0, done.err
    return tmp_path / "merged"


def figures(fedpeft, adapter, data):
    done = fedpeft("adapter", "eval", adapter, "--data", data, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_tied_head_with_a_lora_gets_weights_of_its_own(fedpeft, inputs, tmp_path):
    """huggingface/peft#2018, #2777; huggingface/transformers#45127; unslothai/unsloth#9331."""
    adapter = inputs.adapter("tied-lm-head")
    out = merged(fedpeft, adapter, tmp_path)
    assert torch.allclose(logits(out), logits(inputs.base("tied"), adapter), atol=1e-4)
    assert settings_of(out)["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", ["embeddings", "saved", "tokens", "attention"])
def test_other_adapters_of_a_tied_base_merge_into_what_they_compute(fedpeft, inputs, tmp_path, name):
    """huggingface/peft#2777, PR#2376, PR#2399, #2864: embeddings, head or tokens tuned."""
    configs = {
        "embeddings": lora(target_modules=["embed_tokens"]),
        "saved": lora(modules_to_save=["lm_head"]),
        "tokens": lora(trainable_token_indices=[3, 4, 5]),
        "attention": lora(),
    }
    with quiet():
        save_adapter(tmp_path / "adapter", inputs.base("tied"), configs[name])
    out = merged(fedpeft, tmp_path / "adapter", tmp_path)
    assert torch.allclose(logits(out), logits(inputs.base("tied"), tmp_path / "adapter"), atol=1e-4)
    assert settings_of(out)["tie_word_embeddings"] is (name in ("tokens", "attention"))


def test_a_classifier_keeps_its_trained_head(fedpeft, inputs, tmp_path):
    """huggingface/peft#577, #876, #1836; sentence-transformers#3980; huggingface/transformers#26160."""
    adapter, kind = inputs.adapter("seq-cls"), "AutoModelForSequenceClassification"
    out = merged(fedpeft, adapter, tmp_path)
    assert settings_of(out)["architectures"] == ["LlamaForSequenceClassification"]
    assert torch.equal(
        load_file(out / "model.safetensors")["score.weight"],
        load_file(adapter / "adapter_model.safetensors")["base_model.model.score.weight"],
    )
    assert torch.allclose(logits(out, kind=kind), logits(inputs.base("llama"), adapter, kind), atol=1e-4)
    result = figures(fedpeft, adapter, inputs.data("held.jsonl"))
    assert result["loss"] < 3  # of two classes; as a language model it was 4.7
    assert 0 <= result["accuracy"] <= 1


def test_labels_that_a_head_does_not_have_are_refused(fedpeft, inputs, tmp_path):
    """huggingface/peft#876: which class is which can be told from numbers alone."""
    rows = [{"prompt": f"q{i}", "completion": word} for i, word in enumerate(("yes", "no", "maybe") * 3)]
    (tmp_path / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = fedpeft("adapter", "eval", inputs.adapter("seq-cls"), "--data", tmp_path / "three.jsonl")
    assert "has 2 classes, and the records 3 labels" in done.error


@pytest.mark.parametrize("command", ["eval", "pack", "merge"])
def test_names_that_fit_nothing_are_an_error(fedpeft, inputs, tmp_path, command):
    """huggingface/peft#2699, #1932, PR#2118; huggingface/transformers PR#38627; illuin-tech/colpali#424."""
    options = {
        "eval": ["--data", inputs.data("held.jsonl")],
        "pack": ["-o", tmp_path / "a.fpa", "--eval", inputs.data("held.jsonl"), "--max-loss-change", "1%"],
        "merge": ["-o", tmp_path / "out"],
    }
    done = fedpeft("adapter", command, inputs.adapter("other-prefix"), *options[command])
    assert (
        "it has 'base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight'" in done.error
    )
    assert "the base wants 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'" in done.error
    assert (done.out, done.code) == ("", 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "word"), [("drop", "the base wants"), ("add", "it has")])
def test_a_tensor_too_few_or_too_many_is_an_error(fedpeft, inputs, tmp_path, change, word):
    """hiyouga/LlamaFactory#10294: an adapter of another depth; peft loads the rest without a word."""
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[-1]
    value = tensors.pop(name) if change == "drop" else tensors[name]
    if change == "add":
        tensors[name.replace("layers.1", "layers.7")] = value.clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    assert word in fedpeft("adapter", "eval", folder, "--data", inputs.data("held.jsonl")).error


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("prompt-tuning", "PROMPT_TUNING cannot be merged, since it changes no weights of the base"),
        ("lora-bias", "Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias."),
    ],
)
def test_what_cannot_be_merged_is_refused(fedpeft, inputs, tmp_path, name, cause):
    """huggingface/peft#1030, #1579; hiyouga/LlamaFactory#9014."""
    done = fedpeft("adapter", "merge", inputs.adapter(name), "-o", tmp_path / "out")
    assert cause in done.error
    assert done.code == 2
    assert not (tmp_path / "out").exists()


def test_the_base_grows_to_the_vocabulary_of_the_adapter(fedpeft, inputs, tmp_path):
    """huggingface/peft#1457, #838, #1300, PR#2290; EleutherAI/lm-evaluation-harness#1828; unsloth PR#377."""
    adapter = inputs.adapter("resized")
    assert figures(fedpeft, adapter, inputs.data("held.jsonl"))["loss"] > 0
    out = merged(fedpeft, adapter, tmp_path)
    assert settings_of(out)["vocab_size"] == 106
    assert torch.allclose(logits(out), logits(inputs.base("llama"), adapter, rows=106), atol=1e-4)


def test_the_tokenizer_of_the_adapter_is_used(fedpeft, inputs, tmp_path):
    """huggingface/peft#1300: its tokens are those whose rows were trained."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(inputs.adapter("resized"), tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(inputs.base("llama"))
    tokenizer.add_tokens(["question", "held", "yes", "no"])
    tokenizer.save_pretrained(folder)
    with_own = figures(fedpeft, folder, inputs.data("held.jsonl"))
    assert with_own["loss"] != figures(fedpeft, inputs.adapter("resized"), inputs.data("held.jsonl"))["loss"]
    out = merged(fedpeft, folder, tmp_path)
    assert len(AutoTokenizer.from_pretrained(out)) == 106


def test_a_base_is_never_made_smaller(fedpeft, inputs, tmp_path):
    """huggingface/peft#2415: rows that the adapter does not have are named, not cut."""
    with quiet():
        save_adapter(tmp_path / "small", inputs.base("llama"), lora(modules_to_save=["lm_head"]), rows=90)
    done = fedpeft("adapter", "eval", tmp_path / "small", "--data", inputs.data("held.jsonl"))
    assert "[90, 32] in the adapter and [102, 32] in the base" in done.error


def test_an_unknown_type_is_named(fedpeft, inputs):
    """huggingface/transformers#34733: made by a newer peft, or by none."""
    done = fedpeft("adapter", "eval", inputs.adapter("unknown-type"), "--data", inputs.data("held.jsonl"))
    assert "does not know the adapter type 'QUANTUM'" in done.error


def test_a_task_without_a_model_is_named(fedpeft, inputs, tmp_path):
    """sentence-transformers#3980: adapters of encoders for other tasks."""
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "adapter")
    set_keys(folder, task_type="TOKEN_CLS")
    assert "is for TOKEN_CLS" in fedpeft("adapter", "merge", folder, "-o", tmp_path / "out").error


def test_the_revision_of_the_base_is_read(fedpeft, inputs):
    """amazon-science/chronos-forecasting PR#432; MakazhanAlpamys/Soup#531; pytorch/torchtune PR#2026."""
    done = fedpeft("adapter", "eval", inputs.adapter("revision"), "--data", inputs.data("held.jsonl"))
    assert "'org/model' in revision 'refs/pr/7', which is not on this machine" in done.error


def test_free_text_costs_one_pass_and_claims_no_accuracy(fedpeft, inputs, monkeypatch):
    """EleutherAI/lm-evaluation-harness#1828: 300 answers are no 300 labels; work is linear in the records."""
    from fedpeft.evaluation import metrics

    passes = []
    whole = metrics._passes

    def counted(model, examples):
        passes.append(len(examples))
        return whole(model, examples)

    monkeypatch.setattr(metrics, "_passes", counted)
    result = figures(fedpeft, inputs.adapter("good"), inputs.data("free.jsonl"))
    assert (result["accuracy"], result["count"], passes) == (None, 300, [300])
