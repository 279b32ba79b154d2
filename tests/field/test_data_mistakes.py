"""Mistakes in data and templates: each costs one line, before round 1, and no run directory.

The line names the file, the row where there is one, and what to do. C18, C19, C33, C35, C37 and their kind:
unsloth#334, localGPT#720, transformers#8886, tiktoken#82, claude-code-log#139, gluonts#2846, pandas#34303.
"""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from .input_bases import CHATML
from .input_data import chat, records, write_lines

ROWS = records("x")
GOOD = "".join(json.dumps(row) + "\n" for row in ROWS)
HALF = r"\ud83d"
DEEP = "[" * 100_000
CHAT = {"data__messages": "messages"}
SECRET = "Geheim"


@dataclass(frozen=True)
class Mistake:
    """What a user did, and what the one line must hold."""

    content: Any
    says: tuple[str, ...]
    file: str = "x.jsonl"
    settings: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    code: int = 3


def line(**columns):
    return json.dumps({"prompt": f"{SECRET} q", "completion": "yes", **columns})


def raw(cells):
    """The second line of a file, as it is."""
    return json.dumps(ROWS[0]) + "\n" + cells + "\n" + GOOD


def chats(*turns, **columns):
    """The second line of a file of chats."""
    first, *others = [json.dumps({"messages": chat(row)}) for row in ROWS]
    return "\n".join([first, json.dumps({"messages": list(turns), **columns}), *others])


def said(role, content):
    return {"role": role, "content": content}


ASKED, ANSWERED = said("user", f"{SECRET} q"), said("assistant", "yes")
TABLE = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)


def parquet(path: Path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def dictionary(path: Path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"fold_a": data, "fold_b": data}).save_to_disk(str(path))


def folder(**files):
    """A folder of files; ``__`` for the point in their names."""

    def make(path: Path):
        path.mkdir()
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)

    return make


ARRAY = json.dumps(ROWS)
MISTAKES = {
    # the file
    "no such file": Mistake(None, ("x.jsonl", "data.source is a folder, a file")),
    "an empty file": Mistake("", ("x.jsonl holds no records",)),
    "an ending of no format": Mistake(GOOD, ("x.txt", "set data.format to one of"), "x.txt"),
    "an archive": Mistake(b"PK\3\4", ("x.zip", "is an archive", "unpack it"), "x.zip"),
    "gzip cut off": Mistake(
        gzip.compress(GOOD.encode())[:99], ("x.jsonl.gz", "cut off", "write it again"), "x.jsonl.gz"
    ),
    "text called gzip": Mistake(GOOD, ("x.jsonl.gz", "write it again"), "x.jsonl.gz"),
    "text called Parquet": Mistake(GOOD, ("x.parquet", "write it again"), "x.parquet"),
    "bytes of cp1252": Mistake(
        ("prompt,completion\nq,yes\ncaf\u00e9,yes\n").encode("cp1252"),
        ("x.csv line 3", "data.encoding = 'cp1252'"),
        "x.csv",
    ),
    "bytes of UTF-16": Mistake(TABLE.encode("utf-16"), ("x.csv", "data.encoding = 'utf-16'"), "x.csv"),
    "another encoding than set": Mistake(
        "prompt,completion\ncaf\u00e9,yes\n",
        ("x.csv", "not in its encoding", "data.encoding = 'utf-8'"),
        "x.csv",
        {"data__encoding": "ascii"},
    ),
    "an encoding of no name": Mistake(
        GOOD, ("data.encoding", "utf-16, cp1252"), settings={"data__encoding": "utf-99"}, code=2
    ),
    "a format of no name": Mistake(
        GOOD, ("data.format", "jsonl"), settings={"data__format": "jsnl"}, code=2
    ),
    # JSON
    "a line cut off": Mistake(raw(line()[:-1]), ("x.jsonl line 2", "each line must be one")),
    "an array called JSON lines": Mistake(ARRAY, ("x.jsonl line 1", "data.format = 'json'")),
    "an array cut off": Mistake(ARRAY[:-20], ("x.json row 40 (line 1)", "repair it"), "x.json"),
    "one object": Mistake(
        json.dumps({"prompt": {"0": "a"}}, indent=1), ("x.json", "an array of objects"), "x.json"
    ),
    "deep nesting in a line": Mistake(raw(DEEP), ("x.jsonl line 2", "each line must be one")),
    "deep nesting in an array": Mistake(
        ARRAY[:-1] + "," + DEEP, ("x.json row 41", "nested too deeply; repair it"), "x.json"
    ),
    "a name twice": Mistake(
        raw('{"prompt": "a", "prompt": "b", "completion": "yes"}'),
        ("x.jsonl line 2", "'prompt' (data.prompt) stands twice"),
    ),
    # columns
    "another column": Mistake(
        raw(line().replace("prompt", "promt")), ("x.jsonl line 2", "data.prompt", "nearest: promt")
    ),
    "an empty answer": Mistake(raw(line(completion=" ")), ("x.jsonl line 2", "needs a completion")),
    "a null": Mistake(raw(line(prompt=None)), ("x.jsonl line 2", "'prompt' is empty (null)", "must be text")),
    "a list": Mistake(raw(line(prompt=[SECRET])), ("x.jsonl line 2", "of type list; it must be text")),
    "NaN": Mistake(raw(line(completion=float("nan"))), ("x.jsonl line 2", "'completion' is empty (NaN)")),
    "half an emoji in a prompt": Mistake(
        raw(line(prompt="q HALF").replace("HALF", HALF)), ("x.jsonl line 2", "'prompt'", "repair the line")
    ),
    "half an emoji in an answer": Mistake(
        raw(line(completion="HALF").replace("HALF", HALF)), ("x.jsonl line 2", "'completion'", "repair")
    ),
    "half an emoji in a person": Mistake(
        "".join(line(who=f"a{n}") + "\n" for n in range(9)) + line(who="HALF").replace("HALF", HALF),
        ("x.jsonl line 10", "'who'", "repair the line"),
        settings={"data__person": "who"},
    ),
    "half an emoji in a group": Mistake(
        "".join(line(ward=f"a{n % 2}") + "\n" for n in range(9)) + line(ward="HALF").replace("HALF", HALF),
        ("x.jsonl line 10", "'ward'", "repair the line"),
        settings={"data__partition_column": "ward"},
    ),
    "half an emoji in the name of a column": Mistake(
        '{"promptHALF": "q", "completion": "yes"}\n'.replace("HALF", HALF),
        ("x.jsonl line 1", "data.prompt", "nearest: prompt"),
    ),
    "a line break in the name of a column": Mistake(
        '"prom\npt",completion\nq,yes\n', ("x.csv line 3", "data.prompt", "nearest: prom"), "x.csv"
    ),
    # tables
    "a field too many": Mistake(
        TABLE + "a,b,yes\n", ("x.csv line 42", "quote fields that hold ','"), "x.csv"
    ),
    "an open quote": Mistake(TABLE + '"a,yes\n', ("x.csv line 42", "check its quotes"), "x.csv"),
    "a double column": Mistake(
        TABLE.replace("completion", "prompt", 1),
        ("x.csv line 2", "'prompt' (data.prompt) stands twice"),
        "x.csv",
    ),
    "columns without names": Mistake(",,\n" + TABLE, ("x.csv line 1", "must name the columns"), "x.csv"),
    "a header alone": Mistake("prompt,completion\n", ("x.csv holds no records",), "x.csv"),
    "a missing value in Parquet": Mistake(
        lambda path: parquet(path, [*ROWS, {"prompt": "q", "completion": None}]),
        ("x.parquet row 41", "'completion' is empty (null)"),
        "x.parquet",
    ),
    # folders
    "one file for organisations": Mistake(
        GOOD, ("x.jsonl", "data.partition = 'iid'"), settings={"data__partition": "file"}
    ),
    "an empty folder": Mistake(folder(), ("orgs", "holds no data files; give a file"), "orgs"),
    "a folder of nothing known": Mistake(
        folder(bank__xlsx=""), ("orgs", "allowed are", ".csv"), "orgs", {"data__partition": "file"}
    ),
    "two files of one name": Mistake(
        folder(bank__jsonl=GOOD, bank__csv=TABLE),
        ("orgs", "two data files named 'bank'"),
        "orgs",
        {"data__partition": "file"},
    ),
    "parts of two formats": Mistake(
        folder(a__jsonl=GOOD, b__csv=TABLE), ("orgs", "several formats (.csv, .jsonl)", "give"), "orgs"
    ),
    "splits without train": Mistake(dictionary, ("saved", "fold_a, fold_b", "give one"), "saved"),
    "too few records": Mistake(line(), ("1 records", "take fewer nodes")),
    "nothing to train on": Mistake(
        GOOD, ("data.test_share", "lower them"), settings={"data__test_share": 0.9, "data__validation": 0.2}
    ),
    "a test that is not there": Mistake(
        GOOD, ("none.jsonl does not exist", "give a data file"), settings={"data__test": "none.jsonl"}
    ),
    # templates
    "a template without a column": Mistake(
        GOOD, ("data.template 'x'", "two or more columns"), settings={"data__template": "x"}, code=2
    ),
    "a template that ends with the prompt": Mistake(
        GOOD,
        ("data.template", "answer last"),
        settings={"data__template": "{completion}{prompt}"},
        code=2,
    ),
    "a template with a column that is not there": Mistake(
        GOOD,
        ("x.jsonl line 1", "'instruction' (data.template)", "nearest"),
        settings={"data__template": "{instruction}{completion}"},
    ),
    "chats for a base without a template": Mistake(
        chats(ASKED, ANSWERED), ("x.jsonl line ", "no chat template", "use a chat base"),
        settings={"data__messages": "messages"},
    ),
    "a system turn that the template refuses": Mistake(
        chats(said("system", SECRET), ASKED, ANSWERED),
        ("x.jsonl line 2", "chat template of this base refuses it: System role not supported"),
        settings=CHAT,
        base="nosystem",
    ),
    "an earlier answer that the template hides": Mistake(
        chats(ASKED, said("assistant", "no"), ASKED, ANSWERED),
        ("x.jsonl line 2", "set data.assistant_turns = 'last'"),
        settings=CHAT | {"data__assistant_turns": "all"},
        base="hides",
    ),
    "a template that is broken": Mistake(
        chats(ASKED, ANSWERED),
        ("x.jsonl line ", "refuses it: TemplateSyntaxError"),
        settings=CHAT,
        base="broken",
    ),
    "a setting of turns of no name": Mistake(
        GOOD, ("data.assistant_turns", "'last' or 'all'"), settings={"data__assistant_turns": "al"}, code=2
    ),
    # chats
    "no column of chats": Mistake(GOOD, ("x.jsonl line 1", "data.messages", "nearest"), settings=CHAT),
    "a text for a chat": Mistake(
        raw(json.dumps({"messages": SECRET})).split("\n", 1)[1],
        ("x.jsonl line 1", "must be a list"), settings=CHAT,
    ),
    "a chat nested too deeply": Mistake(
        json.dumps({"messages": DEEP}), ("x.jsonl line 1", "must be a list"), settings=CHAT
    ),
    "a role of no name": Mistake(
        chats(said("usr", SECRET), ANSWERED),
        ("x.jsonl line 2", "message 1", "'usr'; known are"),
        settings=CHAT,
    ),
    "a chat without an answer": Mistake(
        chats(ASKED), ("x.jsonl line 2", "a chat needs an answer"), settings=CHAT
    ),
    "an answer to nothing": Mistake(
        chats(ANSWERED), ("x.jsonl line 2", "needs a message before it"), settings=CHAT
    ),
    "an answer without text": Mistake(
        chats(ASKED, said("assistant", "")), ("x.jsonl line 2", "an answer needs text"), settings=CHAT
    ),
    "a message without text": Mistake(
        chats(said("user", None), ANSWERED), ("x.jsonl line 2", "message 1 has no content"), settings=CHAT
    ),
    "a picture": Mistake(
        chats(said("user", [{"type": "image_url"}]), ANSWERED),
        ("x.jsonl line 2", "message 1", "'image_url'; only parts of type 'text'"),
        settings=CHAT,
    ),
    "half an emoji in a message": Mistake(
        chats(said("user", "HALF"), ANSWERED).replace("HALF", HALF),
        ("x.jsonl line 2", "message 1", "repair the line"), settings=CHAT,
    ),
    "tools that are no list": Mistake(
        chats(ASKED, ANSWERED, tools={"name": "f"}),
        ("x.jsonl line 2", "'tools' must be a list"),
        settings=CHAT,
    ),
}  # fmt: skip

TEMPLATES = {
    "hides": CHATML.replace("{{m['content']}}", "{% if loop.last %}{{m['content']}}{% endif %}"),
    "broken": "{% for m in messages %}{{ m['content'",
}


def write(mistake: Mistake, folder: Path) -> Path:
    file = folder / mistake.file
    if callable(mistake.content):
        mistake.content(file)
    elif mistake.content is not None:
        content = mistake.content
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def base_of(mistake: Mistake, inputs, folder: Path) -> Path:
    """The base, some with a template of their own."""
    if mistake.base not in TEMPLATES:
        return inputs.base(mistake.base)
    made = folder / "base"
    made.mkdir()
    for file in inputs.base("chatml").iterdir():
        (made / file.name).symlink_to(file)
    (made / "chat_template.jinja").unlink()
    (made / "chat_template.jinja").write_text(TEMPLATES[mistake.base])
    return made


def test_there_are_enough_of_them():
    assert len(MISTAKES) >= 25


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_one_line_before_round_one(fedpeft, settings, inputs, tmp_path, name):
    mistake = MISTAKES[name]
    file, run = write(mistake, tmp_path), tmp_path / "run"
    chosen = {"base__model": base_of(mistake, inputs, tmp_path), "data__source": file, **mistake.settings}
    done = fedpeft("simulate", "--quiet", "--out", run, *settings(**chosen))
    assert done.code == mistake.code
    assert [part for part in mistake.says if part not in done.error] == [], done.error
    assert SECRET not in done.error
    assert not run.exists()


def test_the_directory_is_free_for_good_data(fedpeft, settings, tmp_path):
    for content, code in ((raw(line(prompt=None)), 3), (GOOD, 0)):
        (tmp_path / "x.jsonl").write_text(content)
        options = settings(data__source=tmp_path / "x.jsonl")
        assert fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options).code == code


@pytest.mark.parametrize("share", [0, 0.3])
def test_labels_that_are_only_held_out_for_validation_are_no_mistake(fedpeft, settings, tmp_path, share):
    rare = "".join(line(prompt=f"q {n}", completion=f"label {n}") + "\n" for n in range(40))
    (tmp_path / "x.jsonl").write_text(rare)
    changes = {"base__task": "sequence-classification", "data__validation": share, "data__test_share": 0.1}
    options = settings(data__source=tmp_path / "x.jsonl", **changes)
    done = fedpeft("simulate", "--quiet", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err


def test_classes_that_only_the_test_has_are_noted(fedpeft, settings, tmp_path):
    rows = [{"prompt": f"p{n}", "completion": "ab"[n % 2]} for n in range(12)]
    write_lines(tmp_path / "bank.jsonl", rows)
    write_lines(tmp_path / "test.jsonl", [*rows[:6], *({"prompt": "q", "completion": "c"} for _ in range(3))])
    places = {"data__source": tmp_path / "bank.jsonl", "data__test": tmp_path / "test.jsonl"}
    options = settings(**places)
    done = fedpeft("simulate", "--out", tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert "note: 1 of 3 classes are in the test alone" in done.out + done.err
