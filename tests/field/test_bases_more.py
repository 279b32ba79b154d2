"""More bases as people bring them: trained as they are, or refused by name before anything is written.

huggingface/transformers#14218, simpletransformers#1370 (heads of other sizes), transformers#28193, #46736,
LlamaFactory#9101 (weights that are quantised elsewhere), deephaven-core#4561 (pointers of Git LFS).
"""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from fedpeft.adapters import attach, detach
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig

from .input_bases import BERT, LLAMA, tokenizer
from .input_data import records, write_lines

CLASSIFIER = {"base__task": "sequence-classification"}
PRIVATE = {"privacy__unit": "record", "privacy__epsilon": 8, "privacy__public_records": 16}
PRIVATE |= {"privacy__max_noise_to_signal": 1e9}


def configured(**changes):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def weights(change):
    def damage(folder):
        tensors = {name: change(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def shards(folder, index=True):
    """The weights in two files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for place in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == place}
        save_file(part, folder / place, metadata={"format": "pt"})
    if index:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": places})
        )


def replaced(name, content):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return damage


def renamed(name):
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _code_of_its_own(folder):
    configured(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"})(folder)
    (folder / "modeling.py").write_text("raise SystemExit('it was run')")


def _in_a_folder(folder):
    inner = folder / "checkpoint-100"
    inner.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)


def _no_words(folder):
    file = folder / "tokenizer.json"
    words = {"model": {"type": "BPE", "vocab": {}, "merges": []}}
    file.write_text(json.dumps(json.loads(file.read_text()) | words))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
REFUSED = {
    "code of its own": (_code_of_its_own, "code of its own (auto_map), which is never run"),
    "a type of no library": (configured(model_type="llamax"), "is of model_type 'llamax'"),
    "an encoder-decoder": (configured(model_type="t5", is_encoder_decoder=True), "is an encoder-decoder"),
    "a model of pictures": (configured(model_type="vit"), "is a model of type 'vit'"),
    "a model of pictures and text": (
        configured(model_type="llava", vision_config={}),
        "of a multimodal model give the language model",
    ),
    "gptq": (configured(quantization_config={"quant_method": "gptq"}), "quantised with gptq"),
    "fp4": (
        configured(quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
        "quantised with fp4",
    ),
    "compressed-tensors": (
        configured(compression_config={"quant_method": "compressed-tensors"}),
        "quantised with compressed-tensors; supported are none, int8 and nf4",
    ),
    "a quantisation in one word": (configured(quantization_config="gptq"), "an unknown method"),
    "whole numbers as weights": (weights(lambda tensor: tensor.to(torch.int8)), "is of type I8, but config"),
    "float8 as weights": (weights(lambda tensor: tensor.to(torch.float8_e4m3fn)), "is of type F8_E4M3"),
    "zeros as weights": (weights(torch.zeros_like), "its logits are all zero"),
    "another vocabulary": (configured(vocab_size=110), "has shape (102, 32), and by config.json (110, 32)"),
    "another width": (configured(hidden_size=64), "weights and config.json do not belong together"),
    "fewer layers": (configured(num_hidden_layers=1), "for which config.json has no layer"),
    "more layers": (configured(num_hidden_layers=3), "'model.layers.2.input_layernorm.weight' is missing"),
    "heads that do not divide": (configured(num_attention_heads=3), "not a multiple of the number of att"),
    "parts without an index": (
        lambda folder: shards(folder, index=False),
        "which names the parts, is missing",
    ),
    "a pointer as weights": (replaced("model.safetensors", POINTER), "model.safetensors is a pointer of Git"),
    "a pointer as tokenizer": (replaced("tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
    "a web page as weights": (replaced("model.safetensors", b"<!DOCTYPE html>"), "is a web page"),
    "weights of another library": (renamed("tf_model.h5"), "'tf_model.h5' is not read"),
    "weights as Llama's makers have them": (renamed("consolidated.00.pth"), "'consolidated.00.pth' is not"),
    "weights of another name": (renamed("model.fp16.safetensors"), "'model.fp16.safetensors' is not read"),
    "a folder around it": (_in_a_folder, "one lies in its folder 'checkpoint-100'"),
    "a tokenizer without text": (_no_words, "its tokenizer has no token of text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_that_cannot_be_trained_is_refused_by_name(fedpeft, settings, inputs, tmp_path, name):
    """Whole numbers were read as weights, and layers left out, without a word."""
    damage, words = REFUSED[name]
    folder = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    damage(folder)
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings(base__model=folder))
    assert done.code == 4 and words in done.error, done.error
    assert len(done.error) < 450 and not (tmp_path / "run").exists()


def _mark(folder):
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())


READ = {
    "two parts": shards,
    "a byte order mark": _mark,
    "code beside a known type": configured(auto_map={"AutoModelForCausalLM": "modeling.Mine"}),
    "half floats": weights(lambda tensor: tensor.half()),
    "layers that foresee tokens": configured(num_hidden_layers=1, num_nextn_predict_layers=1),
}


@pytest.mark.parametrize("name", READ)
def test_a_base_of_another_form_is_read(inputs, tmp_path, name):
    folder = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    READ[name](folder)
    load_base(BaseConfig(model=str(folder), device="cpu"))


@pytest.fixture
def base_of(tmp_path):
    """A folder with a model, and a tokenizer that ends a text with its end token."""

    def made(model):
        torch.manual_seed(0)
        words = tokenizer()
        words.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 2)]
        )
        model().save_pretrained(tmp_path / "base")
        words.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    yield made
    detach()


FALCON = {"vocab_size": 102, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "changes", [{}, {"alibi": True, "multi_query": False}, {"new_decoder_architecture": True}]
)
def test_a_linear_layer_with_a_pass_of_its_own_carries_an_adapter(base_of, changes):
    """Falcon's was taken for a router: no Falcon could be trained."""
    config = transformers.FalconConfig(**FALCON, **changes)
    base = load_base(
        BaseConfig(model=str(base_of(lambda: transformers.FalconForCausalLM(config))), device="cpu")
    )
    assert attach(base, AdapterConfig(rank=4, skip_layers=()), 0).spec.coverage.adapted == 8


def _t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 102}
    ends = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    return transformers.T5ForSequenceClassification(transformers.T5Config(**sizes, **ends))


def _bart():
    sizes = {"d_model": 32, "vocab_size": 102, "max_position_embeddings": 512}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 32}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.BartForSequenceClassification(transformers.BartConfig(**sizes, **ends, num_labels=2))


@pytest.mark.parametrize("model", [_t5, _bart])
@pytest.mark.parametrize("changes", [{}, PRIVATE], ids=["plain", "private"])
def test_encoder_decoders_classify(fedpeft, settings, base_of, tmp_path, model, changes):
    """Their heads look for the end token, which made-up tokens did not have."""
    options = settings(base__model=base_of(model), **CLASSIFIER, **changes)
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err


def test_a_base_that_passes_no_gradient_to_its_adapter(fedpeft, settings, tmp_path):
    """It was found in round 1."""
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *settings("reversible"))
    assert done.code == 4 and "cannot train its adapter" in done.error
    assert not (tmp_path / "run").exists()


def test_a_weight_that_layers_share_is_counted_once(base_of):
    sizes = LLAMA | {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2}
    mixers = {"mamba_d_state": 4, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 8}
    config = transformers.Zamba2Config(**sizes, **mixers, num_mem_blocks=1, adapter_rank=4)
    folder = base_of(lambda: transformers.AutoModelForCausalLM.from_config(config))
    base = load_base(BaseConfig(model=str(folder), device="cpu"))
    assert attach(base, AdapterConfig(rank=4, skip_layers=()), 0).spec.coverage.share < 1


def _classifier(*classes):
    names = dict(enumerate(classes))
    config = transformers.BertConfig(**BERT, num_labels=len(classes), id2label=names)
    return lambda: transformers.BertForSequenceClassification(config)


def test_classes_stand_in_the_order_of_the_trained_head(fedpeft, settings, base_of, tmp_path):
    """Sorted, they would be each other's."""
    options = settings(base__model=base_of(_classifier("yes", "no")), **CLASSIFIER)
    assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options).code == 0
    (labels,) = (json.loads(file.read_text()) for file in (tmp_path / "run").rglob("labels.json"))
    assert labels == ["yes", "no"]


@pytest.mark.parametrize(
    ("labels", "code", "words"),
    [
        (("a", "b", "c"), 4, "has a head of 2 classes, the records 3"),
        (("a",), 3, "all records have one and the same label"),
    ],
)
def test_classes_that_do_not_fit_the_head(fedpeft, settings, base_of, tmp_path, labels, code, words):
    rows = [row | {"completion": labels[number % len(labels)]} for number, row in enumerate(records("x"))]
    write_lines(tmp_path / "x.jsonl", rows)
    options = settings(
        base__model=base_of(_classifier("x", "y")), data__source=tmp_path / "x.jsonl", **CLASSIFIER
    )
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == code and words in done.error, done.error
    assert not (tmp_path / "run").exists()
