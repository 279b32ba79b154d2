"""``fedpeft bench audit recit``: public texts, pooled figures, and a run of one case."""

import pytest

from fedpeft_attacks.recit import Recipe
from fedpeft_attacks.sequences import Budget
from fedpeft_bench.audit import recit
from fedpeft_bench.audit.recit import AGREED, NOTES, TEXTS, Case
from fedpeft_simulations.embedded.people import pool


def _row(arm, seed, hits, **more):
    place = {"stage": "raw gradient", "rank": 8, "batch": 2, "arm": arm, "seed": seed}
    counts = {"secrets": 8, "hits": hits, "prior": 0, "other": 1, "other_secrets": 10, "exact": 1}
    return {**place, **counts, "rouge": 0.5, "seconds": 1.0, "method": "", **more}


def test_auxiliary_texts_hold_their_personal_data_and_no_private_word():
    samples = recit.auxiliary(200, 0)
    private = {
        word.lower() for words in (pool("private").first_names, pool("private").surnames) for word in words
    }
    for sample in samples:
        assert all(secret in sample.text for secret in sample.secrets)
        assert len(sample.secrets) >= 2
        names = sample.secrets[0].lower().split()
        assert not private & set(names)
        assert ".test" not in sample.text
    assert samples == recit.auxiliary(200, 0)
    assert samples != recit.auxiliary(200, 1)


@pytest.mark.parametrize(
    ("truth", "guess", "value"), [((1, 2, 3), (1, 2, 3), 1.0), ((1, 2), (3,), 0.0), ((1, 2, 3), (1, 3), 0.8)]
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(truth, guess, value):
    assert recit.rouge_l(truth, guess) == pytest.approx(value)


def test_figures_are_pooled_over_seeds_and_shown(capsys):
    rows = [_row(NOTES, 0, 6), _row(NOTES, 1, 4), _row(AGREED, 0, 1), _row(AGREED, 1, 1)]
    notes, agreed = recit.means(rows)
    assert (notes["share"], agreed["share"], notes["other"]) == (10 / 16, 2 / 16, 0.1)
    assert notes["low"] < notes["share"] < notes["high"]
    assert notes["exact"] == 0.5
    recit.show({"machine": "here", "means": [notes, agreed]})
    shown = capsys.readouterr().out
    assert "5.0" in shown and "–" in shown
    assert NOTES in shown


@pytest.mark.slow
def test_a_case_is_run_on_all_its_bases():
    said, cases = [], [Case("raw gradient", 8, (1,), is_ablated=True), Case("raw gradient", 4, (1,))]
    facts = recit.run([0], said.append, cases, Recipe(steps=2), Budget(steps=8, longest=60))
    arms = [(row["rank"], row["arm"]) for row in facts["rows"]]
    assert arms == [(8, NOTES), (4, NOTES), (8, TEXTS), (8, AGREED), (4, AGREED)]
    assert all(row["secrets"] == 4 and row["prior"] == 0 for row in facts["rows"])
    assert said
