"""Where bases lie: hubs with pickled weights or GGUF files alone, revisions; and what serves the adapter."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from fedpeft.bases import load_base
from fedpeft.bases.source import base_folder
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError
from fedpeft_simulations.print_summary import serving_notes


@pytest.fixture
def hub(monkeypatch, tmp_path, inputs):
    """A hub with one repository: what is fetched of it, and all that it holds."""

    def holds(*names, fetched=("config.json", "tokenizer.json", "tokenizer_config.json")):
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for name in fetched:
            shutil.copy(inputs.base("llama") / name, folder)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **settings: str(folder))
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, **settings: [*fetched, *names])
        return folder

    return holds


def test_a_repository_of_pickled_weights_is_named_as_such(hub):
    """huggingface/peft#309 and its like: many clinical BERTs have ``pytorch_model.bin`` alone."""
    hub("pytorch_model.bin", "training_args.bin")
    with pytest.raises(
        BaseModelError, match=r"holds pickled weights alone \(pytorch_model\.bin\)"
    ) as refusal:
        base_folder(BaseConfig(model="clinic/bert"))
    assert "hf download clinic/bert" in str(refusal.value)


def test_a_repository_of_gguf_files_is_named_as_such(hub):
    hub("tiny.Q4_K_M.gguf", "tiny.Q8_0.gguf", fetched=())
    with pytest.raises(BaseModelError, match=r"holds GGUF files alone.*fedpeft base import FILE -o FOLDER"):
        base_folder(BaseConfig(model="clinic/tiny-GGUF"))


def test_a_repository_without_any_weights_is_named_as_such(hub):
    hub("training_args.bin")
    with pytest.raises(BaseModelError, match="holds no weights"):
        base_folder(BaseConfig(model="clinic/bert"))


def test_pickled_weights_in_a_folder_are_read_without_running_what_is_in_them(inputs, tmp_path):
    folder = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pickled = load_base(BaseConfig(model=str(folder), device="cpu")).model.state_dict()
    plain = load_base(BaseConfig(model=str(inputs.base("llama")), device="cpu")).model.state_dict()
    assert all(torch.equal(pickled[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_gguf_file_is_met_with_the_command_that_imports_it(fedpeft, settings, tmp_path, in_folder):
    file = tmp_path / "models" / "tiny.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    options = settings(base__model=file.parent if in_folder else file)
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == 4
    assert "fedpeft base import tiny.Q4_1.gguf -o FOLDER" in done.error
    assert not (tmp_path / "run").exists()


def test_a_revision_is_asked_for_and_named_when_it_is_not_there(hub, monkeypatch):
    asked = []

    def missing(name, **settings):
        asked.append(settings["revision"])
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(BaseModelError, match="'clinic/bert' of revision '12e4567' is no folder here"):
        base_folder(BaseConfig(model="clinic/bert", revision="12e4567"))
    assert asked == ["12e4567"]


def test_a_revision_of_a_folder_is_refused_where_a_run_begins_and_no_matter_to_a_node(
    fedpeft, settings, inputs
):
    """A node has the agreed base in a folder of its own; its hash is what counts."""
    done = fedpeft("config", "show", *settings(base__revision="main"))
    assert done.code == 2
    assert "leave base.revision out" in done.error
    assert base_folder(BaseConfig(model=str(inputs.base("llama")), revision="main")) == inputs.base("llama")


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (16, ()),
        (48, ("rank 48; vLLM takes 16", "--max-lora-rank 64")),
        (480, ("rank 480", "at most 512", "--max-lora-rank 512")),
        (640, ("at most 512", "adapter.aggregation = 'reproject'")),
    ],
)
def test_a_rank_that_servers_do_not_take_is_noted(rank, words):
    """vllm#2847, #9280, gpustack#5438: an adapter of high rank is refused when it is served."""
    notes = serving_notes(rank)
    assert len(notes) == bool(words)
    assert all(word in notes[0] for word in words)


def test_a_stacked_run_ends_with_its_rank(fedpeft, settings, tmp_path):
    stacked = {"adapter__aggregation": "stack", "exchange__up__error_feedback": "false", "adapter__rank": 10}
    options = settings(**stacked, exchange__down__codec="dense-fp32")
    done = fedpeft("simulate", "--out", tmp_path / "run", *options)
    assert done.code == 0
    assert "rank 20; vLLM takes 16, at most 512: start it with --max-lora-rank 32" in done.out

    adapter = tmp_path / "run" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    ranks = {
        tensor.shape[0 if "lora_A" in name else 1]
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    # llama.cpp scales by lora_alpha over a tensor's rank, vLLM by lora_alpha over r; neither reads patterns
    assert (config["r"], config["lora_alpha"], ranks) == (20, 20, {20})
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})


def test_trained_tokens_are_said_to_be_for_merging(fedpeft, settings, tmp_path):
    """vLLM takes no tensor but a factor of LoRA ("is unsupported LoRA weight")."""
    options = settings(adapter__trainable_tokens='["<|im_start|>"]')
    done = fedpeft("simulate", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert (
        "rows of the embeddings are in the adapter (trainable_token_indices), which vLLM does not" in done.out
    )


def test_a_classifier_is_said_to_be_for_merging(fedpeft, settings, tmp_path):
    """vLLM loads no ``modules_to_save``."""
    options = settings(base="roberta514", data__max_length=17, base__task="sequence-classification")
    done = fedpeft("simulate", "--out", tmp_path / "run", *options)
    assert done.code == 0
    assert "vLLM does not load: merge it" in done.out
