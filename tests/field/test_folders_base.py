"""What an exported adapter calls its base, and that plain peft finds it (chronos-forecasting PR#432)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.bases.beside import hub_id, place_base
from fedpeft.bases.files import content_hash

PLAIN = """
import sys, warnings; warnings.simplefilter("error")
warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a property that peft reads
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("fedpeft")]
print(sum(value.norm().item() for name, value in model.named_parameters() if "lora_" in name))
"""


def plain_peft(adapter, folder):
    """Runs `AutoPeftModelForCausalLM.from_pretrained` in a folder, without fedpeft and without a hub."""
    command = [sys.executable, "-I", "-c", PLAIN, str(adapter)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run(fedpeft, settings, tmp_path, monkeypatch):
    """A run whose base is a folder elsewhere on this machine."""
    monkeypatch.chdir(tmp_path)
    done = fedpeft("simulate", "--quiet", "--out", "runs/demo", *settings())
    assert done.code == 0, done.err
    return tmp_path / "runs/demo"


def test_one_line_loads_the_adapter_of_a_run(run, tmp_path):
    """amazon-science/chronos-forecasting PR#432; MakazhanAlpamys/Soup#531; pytorch/torchtune PR#2026."""
    done = plain_peft("runs/demo/adapter", tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_an_exported_adapter_names_no_private_path(run, inputs):
    """huggingface/transformers#29849: revision and hash are named, and no place on this machine is."""
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./runs/demo/base"
    assert config["revision"] == content_hash(run / "base") == content_hash(inputs.base("llama"))
    for file in (*run.glob("adapter/*"), *run.glob("base/*")):
        assert str(inputs.root).encode() not in file.read_bytes(), file
    assert config["revision"] in (run / "adapter/README.md").read_text()


def test_the_base_beside_an_adapter_names_its_class(inputs, tmp_path):
    """vllm-project/vllm#14105, instructlab/training#128: "No model architectures are specified"."""
    source = tmp_path / "source"
    shutil.copytree(inputs.base("llama"), source)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"_name_or_path": str(source), "auto_map": {}}))
    place_base(source, tmp_path / "base", "ff")
    laid = json.loads((tmp_path / "base" / "config.json").read_text())
    assert laid["architectures"] == ["LlamaForCausalLM"] and laid["dtype"] == settings["dtype"]
    assert not {"_name_or_path", "auto_map"} & laid.keys()
    assert content_hash(tmp_path / "base") == content_hash(source)


def test_from_another_directory_no_hub_is_asked_for_a_folder_of_a_run(run, tmp_path, monkeypatch):
    """transformers takes ``demo/base`` for an id where no such folder is, and an id may be anybody's."""
    monkeypatch.chdir(tmp_path / "runs")
    name, _ = place_base(run / "base", run / "base", "ff")
    assert name == "./demo/base"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = plain_peft(run / "adapter", elsewhere)
    assert "Repo id must be" in done.stderr and "connect" not in done.stderr
    monkeypatch.chdir(elsewhere)
    assert place_base(run / "base", run / "base", "ff")[0] == "../runs/demo/base"


def test_a_quantised_base_is_named_by_the_hash_that_the_run_agreed_on(
    fedpeft, settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = fedpeft("simulate", "--quiet", "--out", "run", *settings(base__quantisation="nf4"))
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["revision"] == json.loads((tmp_path / "run/run.json").read_text())["base"]["sha256"]


def test_a_run_that_was_moved_is_still_evaluated_and_merged(run, fedpeft, inputs, tmp_path, monkeypatch):
    shutil.move(run, tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    adapter = tmp_path / "elsewhere/adapter"
    assert fedpeft("adapter", "eval", adapter, "--data", inputs.data("held.jsonl")).code == 0
    assert fedpeft("adapter", "merge", adapter, "-o", tmp_path / "merged").code == 0


def test_a_base_of_a_hub_is_named_by_id_and_commit(tmp_path):
    """pytorch/torchtune PR#2026: the commit that was trained on, not the branch that moves on."""
    folder = tmp_path / "hub/models--org--some--model/snapshots" / ("0a" * 20)
    assert hub_id(folder) == ("org/some--model", "0a" * 20)
    assert place_base(folder, tmp_path / "beside", "ff") == ("org/some--model", "0a" * 20)
    assert not (tmp_path / "beside").exists()
    assert hub_id(Path("/home/user/models/llama")) is None


def test_a_base_is_laid_where_no_hard_link_is_possible(inputs, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    place_base(inputs.base("llama"), tmp_path / "base", "ff")
    assert content_hash(tmp_path / "base") == content_hash(inputs.base("llama"))
    assert not any(file.is_symlink() for file in (tmp_path / "base").iterdir())
    monkeypatch.setattr("fedpeft.bases.beside.MOST_COPIED", 0)
    place_base(inputs.base("llama"), tmp_path / "large", "ff")
    assert (tmp_path / "large/model.safetensors").is_symlink()
    assert content_hash(tmp_path / "large") == content_hash(inputs.base("llama"))
