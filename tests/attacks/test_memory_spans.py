"""Probabilities of stretches of records, against one naive pass for each."""

import numpy as np
import pytest
import torch

from fedpeft.data import Example, Record, tokenise
from fedpeft_attacks.memory.decoding import Recovered
from fedpeft_attacks.memory.span_likelihood import Reading, Span, differing, read_continuations, read_spans
from fedpeft_attacks.results.pii import secrets_of, spans_of


def _naive(model, span):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([span.ids])).logits[0].double().log_softmax(1)
    scores = [logits[place - 1] for place in range(span.start, span.end)]
    log_p = sum(float(row[token]) for row, token in zip(scores, span.tokens, strict=True))
    return log_p, all(int(row.argmax()) == token for row, token in zip(scores, span.tokens, strict=True))


def test_a_reading_is_that_of_each_span_by_itself(trained_base, sentences):
    rng = np.random.default_rng(0)
    spans = []
    for row in sentences(12, 1):
        start = int(rng.integers(1, 12))
        spans.append(Span(tuple(row[: int(rng.integers(14, 23))]), start, start + int(rng.integers(1, 3))))
    reading = read_spans(trained_base.model, spans)
    for log_p, greedy, span in zip(reading.log_p, reading.greedy, spans, strict=True):
        expected = _naive(trained_base.model, span)
        assert (log_p, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])


@pytest.mark.parametrize("start", [1, 2, 9])
def test_continuations_of_one_beginning_read_as_spans_do(trained_base, sentences, start):
    head = sentences(1, 2)[0][:start]
    spans = [
        Span((*head, *row[: 1 + place % 4], 7), start, start + 1 + place % 4)
        for place, row in enumerate(np.random.default_rng(3).integers(3, 1000, (9, 4)).tolist())
    ]
    expected = read_spans(trained_base.model, spans).log_p
    assert read_continuations(trained_base.model, spans) == pytest.approx(expected, abs=1e-4)


def test_greedy_is_what_greedy_decoding_writes(trained_base, sentences):
    found = []
    for row in sentences(6, 4):
        ids = list(row[:8])
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(trained_base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(Span(tuple(ids), 8, 11))
    assert read_spans(trained_base.model, found).greedy.all()
    wrong = [Span((*span.ids[:10], span.ids[10] % 900 + 4), 8, 11) for span in found]
    assert not read_spans(trained_base.model, wrong).greedy.any()


def test_records_differ_where_their_secrets_do():
    rows = [[1, 5, 6, 40, 41, 9, 2], [1, 5, 6, 42, 9, 2], [1, 5, 6, 40, 43, 9, 2]]
    assert [span.tokens for span in differing(rows)] == [(40, 41), (42,), (40, 43)]


def test_the_chance_of_some_sample_follows_from_that_of_one():
    reading = Reading(np.log(np.array([0.5, 1e-9, 1.0])), np.array([True, False, True]))
    assert Recovered.of(reading, 3).sampled == pytest.approx([0.875, 3e-9, 1.0], rel=1e-6)


def test_sampled_recovery_is_that_of_samples(trained_base, sentences):
    """3,000 draws of one token: six standard errors."""
    span = Span(tuple(sentences(1, 5)[0][:9]), 8, 9)
    with torch.no_grad():
        logits = trained_base.model(input_ids=torch.tensor([span.ids[:8]])).logits[0, -1]
    span = Span((*span.ids[:8], int(logits.argmax())), 8, 9)
    p = Recovered.of(read_spans(trained_base.model, [span]), 1).sampled[0]
    drawn = torch.multinomial(
        logits.softmax(0), 3000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    assert abs(float((drawn == span.ids[8]).float().mean()) - p) <= 6 * np.sqrt(p * (1 - p) / 3000)


def test_what_looks_like_personal_data_is_found():
    text = "Ward note 7123456, Mary Jones, born 02/03/1951. Since 12 days. Phone 0100 639812. m.j@mail.test."
    record = Record(text, " harbor", person="Mary Jones")
    assert secrets_of(record) == ["7123456", "02/03/1951", "0100 639812", "m.j@mail.test", "Mary Jones"]


def test_spans_of_personal_data_decode_to_it(tiny_llama):
    from fedpeft.config.models import DataConfig

    record = Record("note of mary, phone 0100 639812 today", " green")
    example = tokenise([record], tiny_llama.tokenizer, DataConfig(max_length=64))[0]
    (span,) = spans_of(record, example, tiny_llama.tokenizer)
    assert tiny_llama.tokenizer.decode(span.tokens).strip() == "0100 639812"


def test_what_a_record_lost_to_its_length_is_left_out(tiny_llama):
    record = Record("phone 0100639812 the patient asked for a letter", " green")
    ids = tiny_llama.tokenizer(" asked for a letter green")["input_ids"]
    example = Example(np.array(ids), np.ones(len(ids), np.float32))
    assert list(spans_of(record, example, tiny_llama.tokenizer)) == []
