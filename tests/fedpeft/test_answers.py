"""Exact match, token F1 and ROUGE-L against naive twins and against the library that defines the last one."""

import random
import re
import string

import pytest

from fedpeft.evaluation.answers import answer_figures, normalised, rouge_l, token_f1

WORDS = ["a", "the", "b", "dd", "e-f", "'g", "G"]
LIBRARY = [  # rougeL F-measure of rouge-score 0.1.2: answer, truth
    ("the cat sat on the mat", "the cat was on the mat", 0.833333),
    ("It's 3.5 mg, twice daily.", "3.5 mg twice a day", 0.615385),
    ("größe", "gross", 0.0),
    ("b a", "a b", 0.5),
    ("!!!", "!!!", 0.0),
    ("a b c d e f g", "g f e d c b a", 0.142857),
]


def pairs(count):
    rng = random.Random(0)
    return [[" ".join(rng.choices(WORDS, k=rng.randrange(8))) for _ in range(2)] for _ in range(count)]


def plain(text):
    """SQuAD's normalisation, step by step as its script has it."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def harmonic(common, first, second):
    precision, recall = common / len(first), common / len(second)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def naive_f1(answer, truth):
    words, rest = plain(answer).split(), plain(truth).split()
    if not words or not rest:
        return float(words == rest)
    wanted, common = list(rest), 0
    for word in words:
        if word in rest:
            rest.remove(word)
            common += 1
    return harmonic(common, words, wanted)


def longest(first, second):
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + longest(first[1:], second[1:])
    return max(longest(first[1:], second), longest(first, second[1:]))


def naive_rouge(answer, truth):
    first, second = (re.findall("[a-z0-9]+", text.lower()) for text in (answer, truth))
    return harmonic(longest(first, second), first, second) if first and second else 0.0


def test_articles_case_punctuation_and_space_do_not_count():
    assert normalised(" The  Answer,\nis: A-4!") == "answer is a4"
    assert normalised("anthem of theirs") == "anthem of theirs"


def test_token_f1_and_rouge_l_are_those_of_their_naive_twins():
    for answer, truth in pairs(400):
        assert token_f1(answer, truth) == pytest.approx(naive_f1(answer, truth))
        assert rouge_l(answer, truth) == pytest.approx(naive_rouge(answer, truth))


@pytest.mark.parametrize(("answer", "truth", "value"), LIBRARY)
def test_rouge_l_is_that_of_rouge_score(answer, truth, value):
    assert rouge_l(answer, truth) == pytest.approx(value, abs=1e-6)


def test_rouge_l_is_that_of_rouge_score_wherever_it_is_installed():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    for answer, truth in pairs(400):
        assert rouge_l(answer, truth) == pytest.approx(scorer.score(truth, answer)["rougeL"].fmeasure)


def test_figures_are_means_over_records():
    figures = answer_figures(["the Yes!", "no", "two words", ""], ["yes", "yes", "words two", ""], 1)
    assert (figures.exact_match, figures.token_f1, figures.unfinished) == (0.5, 0.75, 0.25)
    assert figures.rouge_l == pytest.approx((2 / 3 + 0 + 0.5 + 0) / 4)
