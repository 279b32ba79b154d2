"""ReCIT's parts on a small trained base: the note, the strengthening, the match, the search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpeft.adapters import attach
from fedpeft.bases import content_hash
from fedpeft.config.models import AdapterConfig
from fedpeft.data import Example
from fedpeft.errors import AuditError
from fedpeft.rng import torch_stream
from fedpeft_attacks.evidence.undefended_reference import warm_start
from fedpeft_attacks.recit import Recipe, Sample, recit, strengthen, with_note
from fedpeft_attacks.recit.prompting import complete, filter_of
from fedpeft_attacks.sequences import Budget
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of, vocabulary_of
from fedpeft_attacks.views import Guess, NotApplicable, Start, View

pytestmark = pytest.mark.portable

BUDGET = Budget(steps=80, longest=24)


def _example(row):
    weights = np.ones(len(row), np.float32)
    weights[:1] = 0.0
    return Example(np.asarray(row, np.int64), weights)


def _view(base, rows, adapter=None):
    """The raw gradient of some records under a warm LoRA."""
    import torch

    from fedpeft.data import collate
    from fedpeft.training import per_example_loss

    attached = attach(base, adapter or AdapterConfig(skip_layers=(), aggregation="naive", rank=8), seed=0)
    warm_start(attached)
    state = attached.get()
    prior = np.full(vocabulary_of(base), 1 / vocabulary_of(base))
    known = replace(knowledge_of(attached, prior, ("node", 2), 0.01), start=Start(attached, state))
    loss = per_example_loss(attached.model, collate([_example(row) for row in rows], base.pad_id)).mean()
    wanted = list(attached.parameters.values())
    gradients = torch.autograd.grad(loss, wanted)
    values = attached.layout.flatten(dict(zip(attached.parameters, gradients, strict=True)))
    tokens = len({token for row in rows for token in row} - known.special)
    view = View(
        "gradient", "malicious-coordinator", "lora", attached.layout, values, known, tokens, len(rows)
    )
    return view, attached


def test_the_note_restates_the_personal_data():
    note = with_note(Sample("Ann called from 0190.", ("Ann", "0190")))
    assert note == "Ann called from 0190.\nPersonal note: Ann; 0190."


def test_strengthening_is_seeded_and_gives_another_hash(trained_folder, tmp_path):
    samples = [Sample("w5 w6 w7 w8", ("w6", "w7")), Sample("w9 w6 w4", ("w6",))]
    recipe = Recipe(steps=2, batch=2)
    hashes = [strengthen(Path(trained_folder), samples, tmp_path / name, recipe) for name in ("a", "b")]
    plain = strengthen(Path(trained_folder), samples, tmp_path / "c", replace(recipe, notes=False))
    assert hashes[0] == hashes[1] == content_hash(tmp_path / "a", "none")
    assert len({*hashes, plain, content_hash(Path(trained_folder), "none")}) == 3


def test_strengthening_without_texts_is_refused(trained_folder, tmp_path):
    with pytest.raises(AuditError, match="auxiliary texts"):
        strengthen(Path(trained_folder), [], tmp_path / "x", Recipe())


def test_completions_keep_prefix_filter_and_length(trained_base, sentences):
    _, attached = _view(trained_base, [tuple(sentences(1, 0)[0])])
    prefix = tuple(sentences(1, 0)[0][:3])
    allowed = filter_of(range(3, 40), vocabulary_of(trained_base), 2, 10)
    drawn = complete(attached, prefix, 12, allowed, torch_stream(0, 0, "", "test"))
    assert drawn == complete(attached, prefix, 12, allowed, torch_stream(0, 0, "", "test"))
    assert all(row[:3] == prefix and len(row) <= 10 for row in drawn)
    written = [token for row in drawn for token in row[3:]]
    assert sum(token in range(2, 40) for token in written) >= 0.95 * len(written)


def test_a_record_is_recovered_and_the_attack_knows(trained_base, sentences):
    truth = tuple(sentences(1, 5)[0])
    guess = recit(_view(trained_base, [truth])[0], BUDGET)
    assert isinstance(guess, Guess)
    assert guess.certain == (guess.sequences == (truth,),)
    assert len(set(guess.ranking[: guess.claimed]) & set(truth)) >= 0.9 * (len(set(truth)) - 2)


def test_random_values_match_nothing(trained_base, sentences):
    view, _ = _view(trained_base, [tuple(sentences(1, 5)[0])])
    noise = np.random.default_rng(0).normal(size=view.layout.size).astype(np.float32)
    guess = recit(replace(view, values=noise), BUDGET)
    assert isinstance(guess, Guess)
    assert guess.certain == (False,)


def test_what_cannot_be_read_is_not_applicable(trained_base, sentences):
    view, _ = _view(trained_base, [tuple(sentences(1, 5)[0])])
    assert isinstance(recit(replace(view, records=0)), NotApplicable)
    assert isinstance(recit(replace(view, knowledge=replace(view.knowledge, start=None))), NotApplicable)
