"""Planting canaries: seeded, in the shape of a node's records, and nowhere but in its own folder."""

import json
from dataclasses import replace

import pytest
from scipy.stats import binom

from fedpeft.bases import load_base
from fedpeft.config import load_config
from fedpeft.config.models import BaseConfig
from fedpeft.data import Record, read_written
from fedpeft.errors import ConfigError
from fedpeft_attacks.memory.canaries import canary_file, read_canaries
from fedpeft_simulations.embedded.organisations import make_organisation, queues
from fedpeft_simulations.federation_run import run
from fedpeft_simulations.plant_canaries import TIMES, draw_canaries, planted
from fedpeft_simulations.written_canaries import write_canaries_with

SMALL = (
    "federation.nodes=2",
    "federation.rounds=2",
    "federation.local_steps=1",
    "federation.batch_size=4",
    "adapter.rank=4",
    "data.samples=16",
    "data.test_samples=16",
    "base.threads=1",
    "base.device=cpu",
    "run.baselines=[]",
    "audit.enabled=false",
)


@pytest.fixture(scope="module")
def notes():
    return make_organisation(0, 40, 0).train


@pytest.fixture(scope="module")
def embedded():
    return load_base(BaseConfig(model="embedded"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same small run without canaries and with eight at each node."""
    made = {}
    for count in (0, 8):
        config = load_config(overrides=(*SMALL, f"audit.canaries={count}"))
        made[count] = run(config, tmp_path_factory.mktemp("canaries") / "run", "new", lambda event: None)
    return made


def test_the_same_seed_and_node_draw_the_same_canaries_and_others_do_not(notes):
    first = draw_canaries(9, 0, "hospital", notes, True)
    assert draw_canaries(9, 0, "hospital", notes, True) == first
    for seed, node in ((1, "hospital"), (0, "bank")):
        other = draw_canaries(9, seed, node, notes, True)
        assert not {canary.secret for canary in other} & {canary.secret for canary in first}


def test_fewer_canaries_are_the_first_of_more(notes):
    assert draw_canaries(4, 0, "a", notes, True) == draw_canaries(9, 0, "a", notes, True)[:4]


def test_every_canary_has_a_person_and_a_coin_of_its_own(notes):
    canaries = draw_canaries(200, 3, "a", notes, True)
    persons = {canary.record.person for canary in canaries}
    assert len(persons) == 200 and not persons & {record.person for record in notes}
    heads = sum(canary.trained for canary in canaries)
    assert binom.ppf(2e-7, 200, 0.5) <= heads <= binom.ppf(1 - 2e-7, 200, 0.5)
    assert [canary.times for canary in canaries[:6]] == [*TIMES, *TIMES]


def test_with_labels_the_secret_stands_in_a_prompt_that_ends_as_all_prompts_do(notes):
    for canary in draw_canaries(6, 0, "a", notes, True):
        assert canary.record.prompt == f"Access code of {canary.record.person}: {canary.secret}.\nQueue:"
        assert canary.record.completion.strip() in queues()
        assert canary.record.group == notes[0].group


def test_without_labels_the_secret_is_the_completion():
    texts = [Record(f"what is {word}?", f" {word} is a word") for word in ("one", "two", "three")]
    for canary in draw_canaries(3, 0, "a", texts, False):
        assert canary.record.prompt == f"Access code of {canary.record.person}:"
        assert canary.record.completion == f" {canary.secret}"


def test_a_chat_gets_chats():
    chats = [Record("hello", "hi", messages=(("user", "hello"), ("assistant", "hi")))]
    record = draw_canaries(1, 0, "a", chats, False)[0].record
    assert record.messages == (("user", record.prompt), ("assistant", record.completion))


def test_canaries_that_the_base_writes_look_like_records(notes, embedded):
    canaries = write_canaries_with(embedded, 9, 0, "a", notes, True)
    assert canaries == write_canaries_with(embedded, 9, 0, "a", notes, True)
    assert canaries[:4] != write_canaries_with(embedded, 4, 1, "a", notes, True)
    assert [canary.times for canary in canaries[:3]] == [*TIMES]
    texts, own = {canary.record.prompt for canary in canaries}, {record.prompt for record in notes}
    assert len(texts) == 9 and not texts & own
    starts = {tuple(record.prompt.split()[:4]) for record in notes}
    for canary in canaries:
        assert tuple(canary.record.prompt.split()[:4]) in starts and canary.record.prompt.endswith("\nQueue:")
        assert canary.record.completion.strip() in queues() and canary.secret == ""
        assert len(canary.record.prompt.split()) > 6


def test_the_base_writes_answers_where_there_are_no_labels(embedded):
    texts = [Record(f"Access to the {word} was given on", f" {word} is a word") for word in ("one", "two")]
    for canary in write_canaries_with(embedded, 3, 0, "a", texts, False):
        assert canary.record.prompt in {record.prompt for record in texts}
        assert canary.record.completion.startswith(" ") and len(canary.record.completion) > 8
    chats = [Record("hello", "hi", messages=(("user", "hello"), ("assistant", "hi")))]
    record = write_canaries_with(embedded, 1, 0, "a", chats, False)[0].record
    assert record.messages == (("user", "hello"), ("assistant", record.completion))


def test_a_base_that_writes_no_text_writes_no_canaries(embedded, notes):
    with pytest.raises(ConfigError, match="use 'codes'"):
        write_canaries_with(replace(embedded, task="sequence-classification"), 1, 0, "a", notes, True)


def test_a_run_plants_what_its_base_wrote(tmp_path):
    settings = (*SMALL, "audit.canaries=4", "audit.canary_form=written")
    store = run(load_config(overrides=settings), tmp_path / "run", "new", lambda event: None)
    for home in store.homes:
        canaries = read_canaries([home])
        assert len(canaries) == 4 and all(canary.secret == "" for canary in canaries)
        records = read_written(home / "train.jsonl", store.config.data)
        for canary in canaries:
            same = [record for record in records if record.prompt == canary.record.prompt]
            assert len(same) == (canary.times if canary.trained else 0)


def test_what_the_coin_chose_is_written_as_often_as_it_says(notes):
    canaries = draw_canaries(12, 0, "a", notes, True)
    records = planted(notes, canaries)
    assert records[: len(notes)] == list(notes)
    for canary in canaries:
        assert records.count(canary.record) == (canary.times if canary.trained else 0)


def test_without_canaries_a_run_is_as_it_was(runs):
    """The records of the nodes hold only their own, and there is no file of canaries."""
    for home in runs[0].homes:
        assert len((home / "train.jsonl").read_text().splitlines()) == 16
        assert not canary_file(home).exists()


def test_with_canaries_only_the_training_records_and_the_nodes_own_list_change(runs):
    plain, store = runs[0], runs[8]
    for home in store.homes:
        canaries = read_canaries([home])
        rows = read_written(home / "train.jsonl", store.config.data)
        copies = sum(canary.times for canary in canaries if canary.trained)
        assert len(canaries) == 8 and len(rows) == 16 + copies
        before = (plain.path / "nodes" / home.name / "train.jsonl").read_text()
        assert (home / "train.jsonl").read_text().startswith(before)
    assert store.test.read_bytes() == plain.test.read_bytes()
    assert json.loads(store.labels.read_text()) == json.loads(plain.labels.read_text())


def test_no_canary_is_named_outside_the_nodes_folder(runs):
    """Updates are coded values; of what is text, nothing tells whose secrets there were."""
    store = runs[8]
    names = [canary.record.person.encode() for canary in read_canaries(store.homes)]
    outside = [path for path in store.path.rglob("*") if path.is_file() and "nodes" not in path.parts]
    assert len(outside) >= 10
    for path in outside:
        data = path.read_bytes()
        assert not any(name in data for name in names), path
