"""What is public of every record: how it begins and ends, and what each token's loss weighs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.adapters import attach
from fedpeft.config.models import AdapterConfig, DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.training import per_example_loss
from fedpeft_attacks.evidence.undefended_reference import undefended
from fedpeft_attacks.gradient_attack import attack_gradient
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_attacks.sequences import Budget, assemble

pytestmark = pytest.mark.portable
VOCABULARY = 1024
WHOLE = AdapterConfig(skip_layers=(), aggregation="naive", rank=16)
DATA = DataConfig(template="w900 w901 {prompt} w902 w903 {completion}", prompt_weight=0.2, max_length=24)


@pytest.fixture
def starting_base(trained_folder, tmp_path):
    """The trained base with a tokenizer that puts its start token before every text."""
    from tokenizers import Tokenizer, processors

    from fedpeft.adapters import detach
    from fedpeft.bases import load_base
    from fedpeft.config.models import BaseConfig

    folder = tmp_path / "starting"
    folder.mkdir()
    for file in trained_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    yield load_base(BaseConfig(model=str(folder), device="cpu"))
    detach()


def record(sentences, seed):
    words = [f"w{token}" for token in sentences(1, seed)[0][1:-1]]
    return Record(" ".join(words[:10]), " ".join(words[10:13]))


def gradient_of(base, record, data):
    """The gradient of a record as a node trains on it, and its token ids."""
    attached = attach(base, WHOLE, seed=0)
    draws = np.random.default_rng(0)
    values = {
        name: draws.normal(scale=0.02, size=tuple(t.shape)) if "lora_B" in name else t.detach().numpy()
        for name, t in attached.parameters.items()
    }
    attached.load(attached.layout.flatten(values))
    import torch

    (example,) = tokenise([record], base.tokenizer, data)
    loss = per_example_loss(attached.model, collate([example], base.pad_id)).mean()
    parts = torch.autograd.grad(loss, list(attached.parameters.values()))
    return attached, attached.layout.flatten(dict(zip(attached.parameters, parts, strict=True))), example


def read(base, sentences, seed, data):
    """What the attack reads from a record's gradient, and the record."""
    attached, gradient, example = gradient_of(base, record(sentences, seed), data)
    truth = set(map(int, example.ids)) - {1, 2}
    guess = attack_gradient(attached, gradient, len(truth), 1, "sequences", data)
    return guess, tuple(map(int, example.ids))


@pytest.mark.parametrize("weight", [0.2, 0.0])
def test_a_record_is_exact_whatever_its_prompt_weighs(starting_base, sentences, weight):
    guess, ids = read(starting_base, sentences, 3, DATA.model_copy(update={"prompt_weight": weight}))
    assert ids[0] == 1
    assert guess.sequences == (ids,)
    assert guess.certain == (True,)
    assert not guess.note


def test_a_record_without_a_begin_token_is_exact(trained_base, sentences):
    guess, ids = read(trained_base, sentences, 3, DATA)
    assert ids[0] == 900
    assert (guess.sequences, guess.certain) == ((ids,), (True,))


def test_a_first_token_that_no_template_writes_is_found(trained_base, sentences):
    """Neither a begin token nor a template: what later layers read at the first place gives it away."""
    data = DataConfig(template="{prompt} w902 w903 {completion}", prompt_weight=0.2, max_length=24)
    guess, ids = read(trained_base, sentences, 4, data)
    assert ids[0] not in (1, 900)
    assert (guess.sequences, guess.certain) == ((ids,), (True,))


def test_where_the_answer_begins_is_said_to_be_unknown(trained_base, sentences):
    data = DataConfig(prompt_weight=0.2, max_length=24)
    attached, gradient, _ = gradient_of(trained_base, record(sentences, 3), data)
    guess = attack_gradient(attached, gradient, 12, 1, "sequences", data)
    assert "every token was taken to bear the same loss" in guess.note
    even = attack_gradient(
        attached, gradient, 12, 1, "sequences", data.model_copy(update={"prompt_weight": 1.0})
    )
    assert not even.note


def test_random_values_give_no_certain_record_without_a_begin_token(trained_base, sentences):
    attached, gradient, _ = gradient_of(trained_base, record(sentences, 3), DATA)
    noise = np.random.default_rng(1).normal(size=gradient.shape).astype(np.float32)
    guess = attack_gradient(attached, noise, 12, 1, "sequences", DATA)
    assert guess.certain == (False,)


def test_the_budget_reaches_as_far_as_the_longest_record(trained_base, sentences):
    rows = sentences(1, 3)
    reference = undefended(trained_base, 4, np.full(VOCABULARY, 1 / VOCABULARY))
    view = reference.view(rows, set(rows[0]))
    noise = np.random.default_rng(1).normal(size=view.values.shape).astype(np.float32)
    short = RecordFrame(begin=(1,), end=2, longest=12)
    view = replace(view, values=noise, knowledge=replace(view.knowledge, frame=short))
    assert max(map(len, assemble(view, Budget(40, longest=12)).sequences)) <= 12


@pytest.mark.parametrize("data", [DATA, DATA.model_copy(update={"prompt_weight": 0.0})])
def test_weights_are_those_of_training(starting_base, sentences, data):
    frame = RecordFrame.of(starting_base.tokenizer, data)
    assert (frame.begin, frame.head, frame.end, frame.markers) == ((1,), (900, 901), 2, (902, 903))
    for seed in range(5):
        (example,) = tokenise([record(sentences, seed)], starting_base.tokenizer, data)
        assert frame.weights(example.ids.tolist()).tolist() == example.weights.tolist()


def test_agreed_labels_tell_where_the_answer_begins(trained_base):
    data = DataConfig(prompt_weight=0.5)
    frame = RecordFrame.of(trained_base.tokenizer, data, ["w7 w8", "w8"])
    assert frame.knows_answers and not frame.markers
    assert frame.weights([3, 4, 8, 2]).tolist() == [0, 0.5, 1, 1]
    assert frame.weights([3, 4, 7, 8, 2]).tolist() == [0, 0.5, 1, 1, 1]
    assert frame.weights([3, 4, 5]).tolist() == [0, 0.5, 0.5]
    free = RecordFrame.of(trained_base.tokenizer, data)
    assert not free.knows_answers and free.weights([3, 4, 8, 2]).tolist() == [0, 1, 1, 1]
