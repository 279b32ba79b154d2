"""Nothing that leaves a private round depends on a record, except through the noisy gradients.

The adversary is a coordinator that asks round after round and sees replies, errors and lengths: one record
that turns an update into an error answers a question about that record, and no ledger charges it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch

from fedpeft.protocol.encoding import pack_table, unpack
from fedpeft.protocol.messages import TRAIN, SecureTask, TrainReply
from fedpeft.runstore import write_json
from fedpeft_clients.process_cache import PROCESS
from fedpeft_clients.rounds import local_round
from fedpeft_clients.rounds.handlers import train
from fedpeft_clients.rounds.local_round import INTEGERS
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.node_state import load_state
from fedpeft_clients.rounds.run_home import open_home
from tests.clients.conftest import deal

LABELS = ("green", "red")
CENTRAL = {"unit": "node", "noise_multiplier": 2.0, "sampling_probability": None, "max_noise_to_signal": 1e9}
PRIVATE = {
    "unit": "record",
    "noise_multiplier": 1.0,
    "sampling_probability": 0.3,
    "max_noise_to_signal": 99.0,
}
PRIVATE |= {"randomness": "seeded"}
NONE = {"unit": "none", "noise_multiplier": None, "sampling_probability": None, "randomness": "system"}
ROWS = [{"q": f"note {n} is", "a": LABELS[n % 2], "p": f"p{n}"} for n in range(12)]
DEEP = "[" * 100_000

LINES = {
    "cut off": '{"q": "note", "a": ',
    "a list": "[1, 2]",
    "nested too deeply": DEEP,
    "a missing column": '{"q": "note"}',
    "a null": '{"q": "note", "a": null}',
    "not a number": '{"q": NaN, "a": "red"}',
    "a list in a column": '{"q": ["note"], "a": "red"}',
    "an empty completion": '{"q": "note", "a": " "}',
    "half a surrogate pair": r'{"q": "note \ud800", "a": "red"}',
    "a number of 5000 digits": '{"q": ' + "9" * 5000 + ', "a": "red"}',
}
CLASSIFIED = LINES | {"a label of no list": '{"q": "note", "a": "hiv-positive"}'}


def node(organisation, file, labels=(), columns=(), **sections):
    """A node that trains on a file; with noise that can be repeated, updates from equal records are equal."""
    privacy = {**PRIVATE, **sections.pop("privacy", {})}
    home, coordinator = organisation(privacy=privacy, **sections)
    return trains_on(home, coordinator, file, labels, columns)


def trains_on(home, coordinator, file, labels=(), columns=()):
    held = {"prompt": "q", "completion": "a", "messages": None, "person": None, "partition_column": None}
    facts = json.loads((home.path / "node.json").read_text())
    own = {"columns": held | {"format": "auto"} | dict(columns)}
    write_json(home.path / "node.json", facts | {"train": str(file), "labels": labels, "own": own})
    coordinator.home = open_home(home.path)
    return coordinator


def ask(coordinator, task=None, inbox=b""):
    """The bytes of round 1, asked as if for the first time; nothing else may have changed."""
    home = coordinator.home
    for folder in (home.states, home.outbox):
        shutil.rmtree(folder, ignore_errors=True)
    PROCESS.clear()
    return train(NodeContext(home), task or coordinator.first_task(), inbox)[1]


@pytest.fixture
def classifier(tiny_model_folder):
    """The tiny base with a head for classes."""
    folder = str(tiny_model_folder("llama"))
    return {"model": folder, "device": "cpu", "threads": 1, "task": "sequence-classification"}


def written(rows, *lines):
    return "".join(line + "\n" for line in [*map(json.dumps, rows), *lines]).encode()


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_record_counts_as_nothing(organisation, tmp_path, name):
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file)
    file.write_bytes(written(ROWS))
    without = ask(asked)
    file.write_bytes(written(ROWS[:5], LINES[name]) + written(ROWS[5:]))
    assert ask(asked) == without


def test_bytes_that_are_no_text_count_as_nothing(organisation, tmp_path):
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file)
    file.write_bytes(written(ROWS))
    without = ask(asked)
    file.write_bytes(written(ROWS[:5]) + b'{"q": "note \xff", "a": "red"}\n' + written(ROWS[5:]))
    assert ask(asked) == without


@pytest.mark.parametrize("name", CLASSIFIED)
def test_a_record_without_an_agreed_label_counts_as_nothing(organisation, classifier, tmp_path, name):
    """The list of labels is the coordinator's: whose label it leaves out must not show."""
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file, LABELS, base=classifier)
    file.write_bytes(written(ROWS))
    without = ask(asked)
    file.write_bytes(written(ROWS, CLASSIFIED[name]))
    assert ask(asked) == without


CSV_LINES = {
    "a field too many": "note,red,x,more",
    "an empty completion": "note,,x",
    "bytes that are no text": b"note \xff,red,x".decode("latin-1"),
    "text after a quote": '"note" and,red,x',
}


@pytest.mark.parametrize("name", CSV_LINES)
def test_a_broken_line_of_csv_counts_as_nothing(organisation, tmp_path, name):
    file = tmp_path / "x.csv"
    asked = node(organisation, file)
    lines = ["q,a,p", *(f"{row['q']},{row['a']},{row['p']}" for row in ROWS)]
    file.write_text("\n".join(lines))
    without = ask(asked)
    file.write_bytes("\n".join([*lines[:4], CSV_LINES[name], *lines[4:]]).encode("latin-1"))
    assert ask(asked) == without


def test_a_date_that_python_cannot_hold_counts_as_nothing(organisation, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "x.parquet"
    columns = {"data": {"person": "seen", "max_length": 32}}
    asked = node(organisation, file, columns={"person": "seen"}, privacy={"unit": "person"}, **columns)
    table = pa.Table.from_pandas(pd.DataFrame(ROWS))

    def write(rows, days):
        dates = pa.array(days, pa.int32()).cast(pa.date32())
        pq.write_table(rows.append_column("seen", dates), file)

    write(table, range(12))
    without = ask(asked)
    write(pa.concat_tables([table, table.slice(0, 1)]), [*range(12), 2**31 - 1])
    assert ask(asked) == without


def test_a_record_without_a_person_counts_as_nothing(organisation, tmp_path):
    file = tmp_path / "x.jsonl"
    columns = {"data": {"person": "p", "max_length": 32}}
    asked = node(organisation, file, columns={"person": "p"}, privacy={"unit": "person"}, **columns)
    file.write_bytes(written(ROWS))
    without = ask(asked)
    file.write_bytes(written(ROWS, '{"q": "note", "a": "red"}', '{"q": "note", "a": "red", "p": null}'))
    assert ask(asked) == without


EVIL = (
    "{% for m in messages %}{% if 'Smith' in m.content %}{{ raise_exception(m.content) }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def test_a_chat_that_the_template_refuses_counts_as_nothing(organisation, tmp_path, tiny_model_folder):
    """A template may come with a base that others made: it must not find a name in the notes."""
    folder, file = tmp_path / "base", tmp_path / "x.jsonl"
    shutil.copytree(tiny_model_folder("llama"), folder)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"chat_template": EVIL}))
    base = {"model": str(folder), "device": "cpu", "threads": 1}
    columns = {"data": {"messages": "m", "max_length": 32}}
    asked = node(organisation, file, columns={"messages": "m"}, base=base, **columns)

    def chat(who):
        pair = [{"role": "user", "content": f"patient {who}"}, {"role": "assistant", "content": "fine"}]
        return json.dumps({"m": pair})

    file.write_text("\n".join(map(chat, range(12))))
    without = ask(asked)
    odd = ['{"m": "no chat"}', '{"m": [{"role": "user", "content": "alone"}]}']
    file.write_text("\n".join([*map(chat, range(12)), chat("Smith"), *odd]))
    assert ask(asked) == without


KINDS = {
    "record": {},
    "person": {"privacy": {"unit": "person"}, "data": {"person": "p", "max_length": 32}},
    "central": {"privacy": {**CENTRAL, "trust": "central"}, "exchange": {"up": {"error_feedback": False}}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"[1]\n"])
def test_a_data_set_without_records_is_answered(organisation, tmp_path, kind, content):
    """By noise alone where the node adds some, else by an update of zeros."""
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file, columns={"person": "p"}, **KINDS[kind])
    file.write_bytes(content)
    assert len(ask(asked)) > 64


def poisoned(monkeypatch, home, failing):
    """A model whose forward pass fails where a token occurs that one record alone has."""
    token, real = NodeContext(home).base.tokenizer("Q")["input_ids"][-1], torch.nn.Embedding.forward

    def forward(self, ids):
        if (ids == token).any():
            raise failing
        return real(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", forward)


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("failing", [IndexError("row"), RuntimeError("out of memory"), MemoryError()])
def test_a_record_whose_gradient_cannot_be_computed_counts_as_zero(
    organisation, tmp_path, monkeypatch, engine, failing
):
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file, privacy={"sampling_probability": 1.0}, run={"engine": engine})
    file.write_bytes(written(ROWS))
    without = ask(asked)
    poisoned(monkeypatch, asked.home, failing)
    file.write_bytes(written(ROWS, '{"q": "Q", "a": "red"}'))
    assert ask(asked) == without


def test_a_round_that_fails_where_the_coordinator_adds_the_noise_is_an_update_of_zeros(
    organisation, tmp_path, monkeypatch
):
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file, **KINDS["central"])
    file.write_bytes(b"")
    without = ask(asked)
    poisoned(monkeypatch, asked.home, IndexError("row"))
    file.write_bytes(written([*ROWS[:1], {"q": "Q", "a": "red"}]))
    assert ask(asked) == without


def summed(organisation, file):
    """A node of a secure sum of three that trains on a file, and its integers of round 1, asked for anew."""
    sections = {"privacy": NONE, "federation": {"nodes": 3}, "exchange": {"secure": {"enabled": True}}}
    names, attempts = ("bank", "clinic", "court"), count(1)
    made = {name: organisation(name, roster=names, **sections) for name in names}
    asked = trains_on(*made["clinic"], file)
    layout, first = NodeContext(asked.home).attached.layout, asked.first_task()
    scales = [950] * len(layout.names)
    terms = SecureTask("keys", 1, 1, first.state, 3, layout.size + len(scales), 0, scales)

    def answer():
        attempt = next(attempts)
        boxes = deal([home for home, _ in made.values()], replace(terms, attempt=attempt))
        box = pack_table(boxes["clinic"])
        ask(asked, replace(first, attempt=attempt, inbox=len(box)), box)
        return load_state(asked.home.states, 1).residuals[INTEGERS].tobytes()

    return asked, answer


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("kind", ["central", "secure"])
def test_values_that_are_not_finite_are_an_update_of_zeros(
    organisation, tmp_path, monkeypatch, caplog, kind, what
):
    """No exception is needed to tell: a record alone may drive the values where a later step refuses them."""
    file = tmp_path / "x.jsonl"
    if kind == "central":
        asked = node(organisation, file, **KINDS["central"])
        answer = partial(ask, asked)
    else:
        asked, answer = summed(organisation, file)
    file.write_bytes(b"")
    without = answer()
    file.write_bytes(written(ROWS))
    assert answer() != without
    real = local_round.train_local

    def driven(attached, *arguments):
        real(attached, *arguments)
        values = attached.get()
        values[:2] = what
        attached.load(values)

    monkeypatch.setattr(local_round, "train_local", driven)
    assert answer() == without and "not finite" in caplog.text


def test_a_round_without_dp_and_without_a_secure_sum_still_says_what_is_wrong(organisation, tmp_path):
    """Nothing is promised there, and an operator wants to know."""
    from fedpeft.errors import DataError

    file = tmp_path / "x.jsonl"
    asked = node(organisation, file, privacy=NONE)
    file.write_bytes(written(ROWS, "[1]"))
    with pytest.raises(DataError, match="line 13"):
        ask(asked)


def test_the_operator_is_told_without_text(organisation, tmp_path, caplog):
    file = tmp_path / "x.jsonl"
    asked = node(organisation, file)
    file.write_bytes(written(ROWS, '{"q": "Anna Geheim", "a": null}'))
    ask(asked)
    assert "1 of 13 records of x.jsonl" in caplog.text and "Geheim" not in caplog.text


def test_an_organisation_answers_as_ever(joined):
    """The whole way to the coordinator, with noise of the system: an update, and no error."""
    config = joined.config(base={"task": "sequence-classification"})
    assert joined.offer(config, labels=("green", "blue")) == ("agreed", "")
    reply = joined.say(TRAIN, joined.first_task(config))[1]
    assert not reply.has_error() and len(unpack(reply, TrainReply, 10**6)[1]) > 64


def test_tokens_that_the_base_does_not_have_count_as_nothing():
    """On a GPU an index beyond the embedding ends the process' use of the card."""
    from types import SimpleNamespace

    from fedpeft.data import Example

    made = [Example(np.array(ids), np.ones(len(ids), np.float32)) for ids in ([1, 2], [1, 9], [3])]
    faults = []
    base = SimpleNamespace(model=SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(9, 2)))
    assert local_round._known(made, base, faults) == [made[0], made[2]] and len(faults) == 1
