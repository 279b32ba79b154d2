"""What a base's hash does not cover is not loaded: every file and setting that a loader may look at."""

import contextlib
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpeft.bases import content_hash
from fedpeft.bases.load import load_apart, quiet
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError

IDS = torch.tensor([[1, 5, 9, 30]])
TEXT = "the patient asked for a letter\n<eos> 12"
HOSTILE = {
    "chat_template": "x",
    "eos_token": "<bos>",
    "auto_map": {"AutoTokenizer": ["evil.T", None]},
    "x": 1,
}


def _loaded(folder):
    """Everything of a loaded base that a run could feel."""
    base = load_apart(BaseConfig(model=str(folder), device="cpu"))
    tokenizer = base.tokenizer
    with torch.no_grad():
        logits = base.model(IDS).logits
    settings = base.model.config.to_dict() | {"generation": base.model.generation_config.to_dict()}
    settings.pop("_name_or_path", None)
    words = (
        tokenizer(TEXT)["input_ids"],
        tokenizer.special_tokens_map,
        len(tokenizer),
        tokenizer.chat_template,
    )
    names = sorted(name for name, _ in base.model.named_parameters())
    return logits.numpy().tobytes(), names, json.dumps(settings, sort_keys=True, default=str), repr(words)


def _file_names():
    """Names of files that transformers or peft may open in a model's folder, read off their own code."""
    modules = ("transformers.utils", "transformers.utils.hub", "transformers.tokenization_utils_base")
    modules += ("transformers.utils.peft_utils", "peft.utils", "peft.utils.constants")
    found = set()
    for module in map(importlib.import_module, modules):
        values = {name: getattr(module, name) for name in dir(module) if name.isupper()}
        found |= {v for k, v in values.items() if isinstance(v, str) and k.endswith(("_NAME", "_FILE"))}
    found |= {name for name in _vocabularies() if name}
    return sorted(name for name in found if Path(name).suffix and "/" not in name)


def _vocabularies():
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    with quiet():
        for name in set(TOKENIZER_MAPPING_NAMES.values()) - {None}:
            with contextlib.suppress(ImportError):
                yield from getattr(tokenizer_class_from_name(name), "vocab_files_names", {}).values()


BESIDE = (
    "evil.py",
    "modeling_llama.py",
    "additional_chat_templates/x.jinja",
    "default.jinja",
    "tokenizer.9.json",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.model.v3",
    "model.fp16.safetensors",
    "consolidated.safetensors",
    "pytorch_model-00001-of-00001.bin",
    "custom_generate/generate.py",
    "kernel_config.json",
    "original/params.json",
    "runs/adapter_config.json",
)


@pytest.fixture(scope="module")
def sharded(tiny_model_folder, tmp_path_factory):
    """The tiny Llama in two shards, and what it computes."""
    folder = shutil.copytree(tiny_model_folder("llama"), tmp_path_factory.mktemp("closed") / "base")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    table = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for shard in set(table.values()):
        part = {n: weights[n].clone() for n in names if table[n] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder, content_hash(folder), _loaded(folder)


def _same_or_another(sharded, folder):
    """Either the hash is another one, or the base that is loaded is the same in every bit."""
    _, agreed, expected = sharded
    try:
        found = content_hash(folder)
    except BaseModelError:
        return "refused"
    if found != agreed:
        return "another"
    assert _loaded(folder) == expected, f"{folder} has the same hash and loads another base"
    return "same"


def _spoil(file):
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".json":
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(HOSTILE | settings | HOSTILE))
    elif file.exists():
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    else:
        file.write_bytes(b"{{ 'x' }}")


def test_every_file_is_hashed_or_not_loaded(sharded, tmp_path):
    outcomes = {}
    for name in (*_file_names(), *BESIDE):
        folder = shutil.copytree(sharded[0], tmp_path / "copy")
        _spoil(folder / name)
        outcomes[name] = _same_or_another(sharded, folder)
        shutil.rmtree(folder)
    hashed = {name for name, outcome in outcomes.items() if outcome != "same"}
    assert {"tokenizer_config.json", "chat_template.jinja", "generation_config.json", "vocab.json"} <= hashed
    assert {"adapter_config.json", "adapter_model.safetensors", *BESIDE} <= outcomes.keys() - hashed


def test_the_names_are_those_that_the_loader_asks_for(sharded, monkeypatch):
    """The list above is read off constants; here is what a load really looks for."""
    from transformers.utils import hub

    asked, real = set(), hub.cached_files

    def listen(path_or_repo_id, filenames, **kwargs):
        asked.update(filenames)
        return real(path_or_repo_id, filenames, **kwargs)

    monkeypatch.setattr(hub, "cached_files", listen)
    assert _loaded(sharded[0]) == sharded[2]
    assert "tokenizer.json" in asked and asked <= {*_file_names(), *BESIDE}


def test_an_adapter_in_the_folder_is_not_put_on_the_base(sharded, tmp_path):
    from peft import LoraConfig, get_peft_model

    folder = shutil.copytree(sharded[0], tmp_path / "copy")
    base = load_apart(BaseConfig(model=str(folder), device="cpu"))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base.model, lora).save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").exists()
    assert _same_or_another(sharded, folder) == "same"


@pytest.mark.parametrize(
    "place", ["sub/{}", "../elsewhere/{}", "./{}", "{outside}/{}", "sub/../{}", "adapter_{}"]
)
def test_an_index_names_files_of_its_own_folder_only(sharded, tmp_path, place):
    folder = shutil.copytree(sharded[0], tmp_path / "copy")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for other in ("sub", "../elsewhere"):
        (folder / other).mkdir()
        for shard in set(index["weight_map"].values()):
            shutil.copy(folder / shard, folder / other)
    for shard in set(index["weight_map"].values()):
        shutil.copy(folder / shard, folder / f"adapter_{shard}")
    moved = {n: place.format(s, outside=tmp_path / "elsewhere") for n, s in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": moved}))
    with pytest.raises(BaseModelError, match=r"which is no \.safetensors file beside it; download it again"):
        load_apart(BaseConfig(model=str(folder), device="cpu"))


OTHER = {"a number": 3, "a word": "mistral", "a path": "../elsewhere/model.safetensors", "null": None}


def _settings(name, folder):
    known = {
        "config.json": (
            *("_name_or_path", "auto_map", "transformers_weights", "transformers_version", "dtype"),
            *("torch_dtype", "use_cache", "architectures", "_attn_implementation", "attn_implementation"),
        ),
        "tokenizer_config.json": (
            *("vocab_file", "tokenizer_file", "merges_file", "fast_tokenizer_files", "auto_map"),
            *("name_or_path", "chat_template", "eos_token", "padding_side", "truncation_side"),
            *("special_tokens_map_file", "clean_up_tokenization_spaces", "model_input_names"),
        ),
        "generation_config.json": ("transformers_version", "temperature", "custom_generate"),
    }
    present = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    return sorted({*known[name], *present})


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("value", OTHER)
def test_a_setting_is_hashed_or_not_loaded(sharded, tmp_path, name, value):
    folder = shutil.copytree(sharded[0], tmp_path / "copy")
    settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    outcomes = set()
    for key in _settings(name, folder):
        (folder / name).write_text(json.dumps(settings | {key: OTHER[value]}))
        outcomes.add(_same_or_another(sharded, folder))
    assert "another" in outcomes


def test_loading_needs_no_network(sharded, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http, "get_session", lambda: pytest.fail("the loader asks the hub"))
    assert _loaded(sharded[0]) == sharded[2]
    assert constants.HF_HUB_OFFLINE is False
