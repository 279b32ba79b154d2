"""The carried base: what it is, what it has seen, and that the recipe makes it again."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedpeft_simulations.embedded import base_path
from fedpeft_simulations.embedded.corpus import Document, labelled, public_documents
from fedpeft_simulations.embedded.organisations import global_test, queues
from fedpeft_simulations.embedded.people import source
from fedpeft_simulations.embedded.recipe import Shape, build, new_model, train_tokenizer

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(base_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(base_path(), dtype=torch.float32).eval()


def next_token(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]


def share_of_subjects_named(model: Any, tokenizer: Any, documents: list[Document]) -> float:
    first = [tokenizer(f" {each.answer}", add_special_tokens=False)["input_ids"][0] for each in documents]
    named = [int(next_token(model, tokenizer, each.text).argmax()) for each in documents]
    return sum(a == b for a, b in zip(first, named, strict=True)) / len(documents)


def new_labelled(count: int) -> list[Document]:
    fake = source(99, "public", "test")
    return [labelled(fake) for _ in range(count)]


def digest(folder: Path, name: str) -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_the_carried_folder_is_small_and_complete() -> None:
    names = {path.name for path in base_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in base_path().iterdir()) < 8 * MEBIBYTE


def test_the_carried_model_is_of_the_recipes_shape(model: Any) -> None:
    shape, config = Shape(), model.config
    assert config.model_type == "llama" and config.tie_word_embeddings
    assert (config.hidden_size, config.intermediate_size) == (shape.width, shape.hidden)
    assert (config.num_hidden_layers, config.num_attention_heads) == (shape.layers, shape.heads)
    assert all(torch.equal(value, value.bfloat16().float()) for value in model.parameters())


def test_the_tokenizer_is_whole(tokenizer: Any, model: Any) -> None:
    assert tokenizer.is_fast and len(tokenizer) == model.config.vocab_size
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    text = "Zoë paid 12.50 €\n\tin Köln, 100 %.  "
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(tokenizer(f" {queue}", add_special_tokens=False)["input_ids"]) == 1 for queue in queues())


def test_the_carried_tokenizer_is_the_one_of_the_public_text(tmp_path: Path) -> None:
    made = train_tokenizer(list(public_documents(12000, 0)))
    made.save_pretrained(tmp_path)
    assert digest(tmp_path, "tokenizer.json") == digest(base_path(), "tokenizer.json")


def test_the_base_names_subjects_of_new_texts(model: Any, tokenizer: Any) -> None:
    assert share_of_subjects_named(model, tokenizer, new_labelled(200)) > 0.93


def test_the_base_does_not_know_the_policy(model: Any, tokenizer: Any) -> None:
    desks = torch.tensor([tokenizer(f" {q}", add_special_tokens=False)["input_ids"][0] for q in queues()])
    records = global_test(160, 4)
    guesses = [queues()[int(next_token(model, tokenizer, r.prompt)[desks].argmax())] for r in records]
    right = sum(guess == r.completion.strip() for guess, r in zip(guesses, records, strict=True))
    assert right / len(records) < 0.3


def test_the_recipe_repeats_itself(tmp_path: Path) -> None:
    lines: list[str] = []
    state = torch.random.get_rng_state()
    first = build(tmp_path / "a", steps=2, seed=3, progress=lines.append)
    again = build(tmp_path / "b", steps=2, seed=3)
    assert first == again == digest(tmp_path / "a", "model.safetensors")
    assert digest(tmp_path / "a", "tokenizer.json") == digest(tmp_path / "b", "tokenizer.json")
    assert torch.equal(state, torch.random.get_rng_state())
    assert lines[-1].startswith("step 2 of 2, loss ")


def test_another_seed_is_another_model() -> None:
    first, other = (new_model(seed).model.embed_tokens.weight for seed in (0, 1))
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_the_whole_recipe_makes_as_good_a_base(tmp_path: Path, tokenizer: Any) -> None:
    build(tmp_path / "base")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    assert share_of_subjects_named(made, tokenizer, new_labelled(200)) > 0.93
