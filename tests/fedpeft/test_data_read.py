import json

import datasets
import pandas as pd
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Record, is_record_source, read_folder, read_records, write_records
from fedpeft.errors import DataError

CFG = DataConfig()
SECRET = "Ms Anna Geheim"
ROWS = [{"prompt": "a, b", "completion": "yes"}, {"prompt": 'say "x"\nagain', "completion": "no"}]
RECORDS = [Record(row["prompt"], row["completion"]) for row in ROWS]


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write(tmp_path, kind):
    frame = pd.DataFrame(ROWS)
    if kind == "jsonl":
        return _jsonl(tmp_path / "a.jsonl", ROWS)
    if kind == "csv":
        frame.to_csv(tmp_path / "a.csv", index=False)
        return tmp_path / "a.csv"
    if kind == "parquet":
        frame.to_parquet(tmp_path / "a.parquet")
        return tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "a"))
    return tmp_path / "a"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "datasets"])
def test_every_format_gives_the_same_records(tmp_path, kind):
    path = _write(tmp_path, kind)
    assert is_record_source(path)
    assert read_records(path, CFG) == RECORDS
    assert read_records(path, DataConfig(format=kind)) == RECORDS


def test_datasets_dict_takes_train(tmp_path):
    parts = {"test": datasets.Dataset.from_list(ROWS[:1]), "train": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert read_records(tmp_path / "d", CFG) == RECORDS


def test_columns_are_mapped_and_whole_numbers_are_labels(tmp_path):
    path = _jsonl(tmp_path / "x.jsonl", [{"text": "t", "label": 3, "ward": 7}])
    cfg = DataConfig(prompt="text", completion="label", partition_column="ward")
    assert read_records(path, cfg) == [Record("t", "3", "7")]


def test_written_records_read_back(tmp_path):
    records = [*RECORDS, Record("ü\u2028\x0c\x85", "日", "g")]
    write_records(tmp_path / "r.jsonl", records)
    assert read_records(tmp_path / "r.jsonl", CFG) == records


def test_chats(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = _jsonl(tmp_path / "c.jsonl", [{"chat": chat}, {"chat": json.dumps(chat)}])
    expected = Record("q", "a", None, (("user", "q"), ("assistant", "a")))
    assert read_records(path, DataConfig(messages="chat")) == [expected, expected]
    write_records(tmp_path / "w.jsonl", [expected])
    assert read_records(tmp_path / "w.jsonl", DataConfig(messages="messages")) == [expected]


BAD_LINES = {
    "broken": (json.dumps({"prompt": SECRET})[:-1] + ",", r"x\.jsonl line 2: not a JSON object"),
    "list": ("[1, 2]", "line 2: not a JSON object"),
    "empty completion": (json.dumps({"prompt": SECRET, "completion": "  "}), "line 2: 'completion' is empty"),
    "null": (json.dumps({"prompt": SECRET, "completion": None}), r"line 2: 'completion' is empty \(null\)"),
    "type": (json.dumps({"prompt": [SECRET], "completion": "a"}), "line 2: 'prompt' is of type list"),
    "not a number": ('{"prompt": NaN, "completion": "a"}', r"line 2: 'prompt' is empty \(NaN\)"),
    "column": (
        json.dumps({"promt": SECRET, "completion": "a"}),
        "line 2: no column 'prompt' .*nearest: promt",
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_rows_name_the_line_and_never_the_text(tmp_path, name):
    line, pattern = BAD_LINES[name]
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=pattern) as caught:
        read_records(path, CFG)
    assert "\n" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error) and SECRET not in getattr(error, "doc", "")
        error = error.__context__


ASKED, EMPTY = {"role": "user", "content": SECRET}, {"role": "assistant", "content": " "}
BAD_CHATS = [
    (None, "messages must be a list"),
    ("x", "messages must be a list"),
    ([], "messages must be a list"),
    ([ASKED], "no message comes from the assistant"),
    ([{"role": "user"}, EMPTY], "message 1 has no content"),
    ([ASKED, EMPTY], "the last message of the assistant is empty"),
    ([{"role": "assistant", "content": "q"}, ASKED], "nothing stands before the answer"),
    ([{"role": "usr", "content": SECRET}, EMPTY], "message 1: its role is 'usr'; known are system"),
    ([{"role": SECRET, "content": ""}, EMPTY], "message 1: its role is no name of a role"),
]


@pytest.mark.parametrize(("chat", "pattern"), BAD_CHATS)
def test_bad_chats(tmp_path, chat, pattern):
    path = _jsonl(tmp_path / "c.jsonl", [{"chat": chat}])
    with pytest.raises(DataError, match=f"line 1: {pattern}") as caught:
        read_records(path, DataConfig(messages="chat"))
    assert SECRET not in str(caught.value)


CSV = {
    "fields": ("prompt,completion\na,b\nc,d,e\n", "line 3: 3 fields, the header has 2"),
    "quote": ('prompt,completion\na,"b\n', "not valid CSV"),
    "header": ("prompt,prompt\na,b\n", r"column 'prompt' \(data.prompt\) stands twice"),
}


@pytest.mark.parametrize("name", CSV)
def test_bad_csv(tmp_path, name):
    text, pattern = CSV[name]
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=pattern):
        read_records(tmp_path / "x.csv", CFG)


def test_files_that_are_not_what_they_seem(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "dataset_info.json").write_text("{")
    cases = {
        "x.parquet": "not a readable Parquet file",
        "x.jsonl": "cannot be read as UTF-8",
        "x.txt": "cannot tell the format",
        "empty.jsonl": "holds no records",
        "d": "holds no data files",
        "e": "not a readable datasets folder",
        "no.jsonl": "does not exist",
    }
    for name, pattern in cases.items():
        with pytest.raises(DataError, match=pattern):
            read_records(tmp_path / name, CFG)


def test_a_folder_is_one_organisation_per_file(tmp_path):
    _jsonl(tmp_path / "bank.jsonl", ROWS)
    pd.DataFrame(ROWS[:1]).to_csv(tmp_path / "clinic.csv", index=False)
    (tmp_path / "notes.md").write_text("ignored")
    assert read_folder(tmp_path, CFG) == {"bank": RECORDS, "clinic": RECORDS[:1]}
    _jsonl(tmp_path / "clinic.jsonl", ROWS)
    with pytest.raises(DataError, match="two data files named 'clinic'"):
        read_folder(tmp_path, CFG)
    with pytest.raises(DataError, match="not a folder of data files"):
        read_folder(tmp_path / "bank.jsonl", CFG)
