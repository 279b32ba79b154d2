"""Data of a node: what is wrong with them is found when they are registered, and by the doctor.

C18 and C19 for nodes; C37 (`--encoding`), C33 (`--template`); C55: FLIP PR#1172, flower PR#3530, darbaan#196.
"""

import hashlib
import json
import os

import pytest

from .input_data import chat, records
from .test_data_mistakes import ANSWERED, ASKED, DEEP, HALF, SECRET, chats, line, raw, said

ROWS = records("x")


@pytest.fixture
def node(fedpeft, monkeypatch, tmp_path):
    """Runs ``fedpeft node`` with a node of its own."""
    monkeypatch.setenv("FEDPEFT_HOME", str(tmp_path / "home"))
    assert fedpeft("node", "init", "clinic").code == 0
    return lambda *arguments: fedpeft("node", *arguments)


@pytest.fixture
def add(node, tmp_path):
    """Registers a file of this content."""

    def register(content, *options, name="x.jsonl"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return node("data", "add", "notes", file, "--budget-id", "notes", "--no-preview", *options)

    return register


CHATS = ("--messages-column", "messages")
WRONG = {
    "half an emoji in a prompt": (raw(line(prompt="HALF")), (), "x.jsonl line 2"),
    "half an emoji in a message": (chats(said("user", "HALF"), ANSWERED), CHATS, "x.jsonl line 2: message 1"),
    "half an emoji in a person": (
        raw(line()) + line(who="HALF"),
        ("--person-column", "who"),
        "x.jsonl line 1",
    ),
    "deep nesting": (raw(DEEP), (), "x.jsonl line 2"),
    "deep nesting in a chat": (json.dumps({"messages": DEEP}), CHATS, "x.jsonl line 1"),
    "a role of no name": (chats(said("usr", SECRET), ANSWERED), CHATS, "x.jsonl line 2: message 1"),
    "no answer": (chats(ASKED), CHATS, "x.jsonl line 2"),
    "another encoding": ("caf\u00e9\n".encode("cp1252"), (), "--encoding cp1252"),
    "a template without columns": (raw(line()), ("--template", "x"), "two or more columns"),
    "a template with an unknown column": (raw(line()), ("--template", "{note}{completion}"), "'note'"),
    "an encoding of no name": (raw(line()), ("--encoding", "utf-99"), "utf-16, cp1252"),
    "a format of no name": (raw(line()), ("--format", "jsnl"), "jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_when_data_are_registered(node, add, name):
    content, options, says = WRONG[name]
    content = content.replace("HALF", HALF) if isinstance(content, str) else content
    done = add(content, *options)
    assert done.code in (2, 3) and says in done.error, done.error
    assert SECRET not in done.error
    assert json.loads(node("data", "list", "--json").out)["datasets"] == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_called_so(node, add, tmp_path):
    add(raw(line()))
    (tmp_path / "x.jsonl").chmod(0)
    assert (
        "permission denied"
        in node("data", "add", "notes", tmp_path / "x.jsonl", "--budget-id", "notes").error
    )


def test_encodings_and_templates_are_kept_with_the_data_set(node, add):
    table = "instruction;input;output\ncaf\u00e9;context;yes\na;b;no\n"
    options = ("--encoding", "cp1252", "--template", "{instruction} {input}{output}")
    assert add(table.encode("cp1252"), *options, name="x.csv").code == 0
    columns = json.loads(node("data", "list", "--json").out)["datasets"]["notes"]["columns"]
    assert (columns["encoding"], columns["template"]) == ("cp1252", options[3])
    assert "notes has 2 readable records" in node("doctor").out


def test_turns_that_are_left_out_are_said(add):
    done = add(chats(*chat(ROWS[0]), ASKED), *CHATS)
    assert done.code == 0 and "left out: 1 records" in done.err


def allow(tmp_path, *bases):
    """Name bases, and no others, in the node's policy."""
    policy = tmp_path / "home/node/clinic/policy.toml"
    hashes = "".join(f'"{hashlib.sha256(str(base).encode()).hexdigest()}" = "{base}"\n' for base in bases)
    text, _, _ = policy.read_text().partition("# of this test\n")
    policy.write_text(f"{text.replace('[bases]', '')}# of this test\n[bases]\n{hashes}")


def test_chats_are_tried_with_the_bases_of_the_policy(node, add, inputs, tmp_path):
    allow(tmp_path, inputs.base("nosystem"))
    system = chats(said("system", SECRET), ASKED, ANSWERED)
    done = add(system, *CHATS)
    assert done.code == 3 and "x.jsonl line 2" in done.error and "System role not supported" in done.error
    assert str(inputs.base("nosystem")) in done.error
    allow(tmp_path, inputs.base("nosystem"), inputs.base("chatml"))
    assert "System role not supported" in add(system, *CHATS).err  # a note: another base takes them


def test_the_doctor_finds_chats_that_were_changed_later(node, add, inputs, tmp_path):
    allow(tmp_path, inputs.base("nosystem"))
    assert add(chats(ASKED, ANSWERED), *CHATS).code == 0
    (tmp_path / "x.jsonl").write_text(chats(said("system", SECRET), ASKED, ANSWERED))
    done = node("doctor")
    assert "x.jsonl line 2" in done.out + done.err and "System role not supported" in done.out + done.err
