"""The embedded organisations: reproducible, of the stated mix, and private against the public text."""

import re
from collections import Counter

import pytest

from fedpeft.errors import ConfigError
from fedpeft_simulations.embedded.corpus import public_documents
from fedpeft_simulations.embedded.organisations import (
    Note,
    global_notes,
    global_test,
    make_organisation,
    queues,
)
from fedpeft_simulations.embedded.people import pool
from fedpeft_simulations.embedded.recipe import public_text
from fedpeft_simulations.embedded.vocabulary import common_words, domains, words


@pytest.fixture(scope="module")
def public() -> str:
    """All public text that the carried base has seen: its tokenizer's and its training documents."""
    return "\n".join(public_text())


@pytest.fixture(scope="module")
def notes() -> list[Note]:
    organisations = [make_organisation(index, 300, seed, 0.1) for index in range(8) for seed in range(3)]
    own = [note for each in organisations for split in each.notes.values() for note in split]
    return own + [note for seed in range(3) for note in global_notes(300, seed)]


def test_no_private_person_is_in_the_public_text(public: str, notes: list[Note]) -> None:
    lower, seen = public.lower(), words(public)
    values = set(re.findall(r"\S+@\S+|\d{8}|\d{4} \d{6}", lower))
    for note in notes:
        person = note.person
        assert person.phone not in values and person.email not in values and person.id not in values
        assert not words(person.name) & seen, "a first name or surname"
        assert not words(person.address.split(" ")[1]) & seen, "a street"
    sample = notes[::40]
    assert all(
        value.lower() not in lower for note in sample for value in (*note.secrets, note.person.address)
    )


def test_no_word_of_the_private_pool_is_in_the_public_text_or_in_a_template(public: str) -> None:
    private = {name.lower() for name in (*pool("private").first_names, *pool("private").surnames)}
    assert not private & words(public)
    assert not private & common_words()


def test_the_pools_share_nothing() -> None:
    public, private = pool("public"), pool("private")
    names = [{*each.first_names, *each.surnames} for each in (public, private)]
    assert not names[0] & names[1]
    assert min(len(public.first_names), len(private.first_names), len(private.surnames)) > 250
    assert not set(public.mail_domains) & set(private.mail_domains)
    assert public.phone[:4] != private.phone[:4] and public.id[0] != private.id[0]


def test_public_text_has_no_house_style_and_no_policy(public: str) -> None:
    assert "Queue:" not in public and "Ward note" not in public and "Memo re" not in public
    answers = {document.answer for document in public_documents(3000, 5)}
    assert not answers & set(queues())


def test_each_note_holds_its_secrets_and_ends_in_its_queue(notes: list[Note]) -> None:
    for note in notes:
        assert note.person.name in note.secrets and len(note.secrets) >= 3
        assert all(secret in note.record.prompt for secret in note.secrets)
        assert note.record.prompt.endswith("\nQueue:")
        assert note.record.completion.strip() in queues()
        assert "  " not in note.record.prompt and "{" not in note.record.prompt


def test_the_policy_is_a_function_of_the_topic_and_spreads_over_domains(notes: list[Note]) -> None:
    desks = {(note.topic, note.record.completion) for note in notes}
    assert len(desks) == sum(len(domain.topics) for domain in domains())
    queue_of = dict(desks)
    for domain in domains():
        assert len({queue_of[topic.name] for topic in domain.topics}) == len(domain.topics)


def test_same_arguments_same_notes_and_other_seed_other_notes() -> None:
    first = make_organisation(2, 20, 7, 0.1)
    assert first == make_organisation(2, 20, 7, 0.1)
    assert first.train != make_organisation(2, 20, 8, 0.1).train
    assert global_test(16, 7) == global_test(16, 7) != global_test(16, 8)
    assert make_organisation(2, 10, 7, 0.1).train == first.train[:10]


def test_splits_and_global_test_share_no_person() -> None:
    organisation = make_organisation(0, 100, 0, 0.1)
    phones = [note.person.phone for split in organisation.notes.values() for note in split]
    phones += [note.person.phone for note in global_notes(100, 0)]
    assert max(Counter(phones).values()) == 1
    assert (len(organisation.train), len(organisation.validation), len(organisation.test)) == (100, 20, 20)


def test_mix_is_the_share_of_other_topics() -> None:
    own = {topic.name for topic in domains()[1].topics}
    pure, mixed = make_organisation(1, 500, 0, 0.0), make_organisation(1, 2000, 0, 0.3)
    assert all(note.topic in own for note in pure.notes["train"])
    away = sum(note.topic not in own for note in mixed.notes["train"]) / 2000
    assert away == pytest.approx(0.3, abs=0.04)


def test_organisations_beyond_four_cycle_with_another_style() -> None:
    names = [make_organisation(index, 1, 0, 0.0).name for index in range(9)]
    assert names[:5] == ["hospital", "bank", "law-office", "personnel-office", "hospital-2"]
    assert len(set(names)) == 9
    heads = {make_organisation(index, 1, 0, 0.0).train[0].prompt.split(" ")[0] for index in (0, 4, 8, 12)}
    assert heads == {"Ward", "Ticket", "Memo", "Case"}


def test_global_test_is_balanced_over_topics() -> None:
    counts = Counter(note.topic for note in global_notes(160, 3))
    assert set(counts.values()) == {10}


@pytest.mark.parametrize("arguments", [(-1, 10, 0, 0.1), (0, 0, 0, 0.1), (0, 10, 0, 1.5)])
def test_impossible_arguments_are_refused(arguments: tuple[int, int, int, float]) -> None:
    with pytest.raises(ConfigError, match="allowed are"):
        make_organisation(*arguments)
    with pytest.raises(ConfigError, match="at least 1"):
        global_notes(0, 0)
