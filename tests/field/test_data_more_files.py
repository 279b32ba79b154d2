"""More files as people have them: read as meant, or refused in one line that names what is wrong.

Of the kinds of C33 to C40: spiceai#12786 (what follows an array), deephaven-core#4561 and Mutual_Fund_Data#1
(pointers of Git LFS), readr#680 (empty lines first), stable-diffusion-webui PR#15832 (blanks before quotes),
huggingface/datasets#5624 (classes of -1).
"""

import bz2
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Notes, Record, read_folder, read_records
from fedpeft.errors import DataError

from .input_data import records, write_lines

ROWS = records("x", 4)
EXPECTED = [Record(row["prompt"], row["completion"]) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BODY = "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)
TABLE = "prompt,completion\n" + BODY
SECRET = "Geheim"
TABLE_OF = pyarrow.Table.from_pylist(ROWS)


def stream(path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, TABLE_OF.schema) as writer:
        writer.write_table(TABLE_OF)


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


READ = {
    "byte order marks of joined files": ("x.jsonl", "\ufeff" + LINES.replace("\n", "\n\ufeff", 1)),
    "lines of an old Mac": ("x.jsonl", LINES.replace("\n", "\r")),
    "JSON beside other lists": ("x.json", json.dumps({"version": "1", "tags": ["a"], "data": ROWS})),
    "Zstandard": ("x.jsonl.zst", pyarrow.compress(LINES.encode(), "zstd", asbytes=True)),
    "members of bzip2": (
        "x.jsonl.bz2",
        b"".join(bz2.compress(f"{line}\n".encode()) for line in LINES.splitlines()),
    ),
    "empty lines first": ("x.csv", "\n\r\n" + TABLE),
    "empty rows of a spreadsheet": ("x.csv", TABLE + ",\n,\n\n"),
    "blanks after commas": ("x.csv", 'prompt, completion\n' + BODY.replace(",", ', "').replace("\n", '"\n')),
    "Excel's line in capitals": ("x.csv", "SEP=;\r\n" + TABLE.replace(",", ";")),
    "Feather": ("x.feather", lambda path: pyarrow.feather.write_feather(TABLE_OF, path)),
    "an Arrow stream": ("x.arrow", stream),
    "large and viewed text": (
        "x.parquet",
        lambda path: pyarrow.parquet.write_table(
            pyarrow.table(
                {
                    "prompt": pyarrow.array([row["prompt"] for row in ROWS], pyarrow.large_string()),
                    "completion": pyarrow.array([row["completion"] for row in ROWS]).dictionary_encode(),
                }
            ),
            path,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_file_of_another_kind_gives_the_same_records(tmp_path, name):
    file, content = READ[name]
    assert read_records(put(tmp_path / file, content), DataConfig()) == EXPECTED


def refused(file, content, says, **settings):
    """A file, and what the one line must hold."""
    return file, content, says, settings


REFUSED = {
    "a spreadsheet": refused("x.xlsx", b"PK\3\4", "a spreadsheet, which is not read: save its"),
    "a spreadsheet called CSV": refused("x.csv", b"PK\3\4" + b"\0" * 99, "a ZIP archive or a spreadsheet"),
    "a zipped file": refused("x.jsonl.zip", b"PK\3\4", "is an archive, which is not read: unpack it"),
    "a pickle": refused("x.pkl", b"\x80\4", "a pickle, which may run code"),
    "gzip without its ending": refused("x.csv", b"\x1f\x8b\x08\0", "end its name with .gz"),
    "Parquet called JSON lines": refused("x.jsonl", b"PAR1", "a Parquet file: end its name with .parquet"),
    "a pointer of Git LFS": refused("x.jsonl", "version https://git-lfs.github.com/\n", "git lfs pull"),
    "such a pointer as Parquet": refused("x.parquet", "version https://git-lfs.github.com/\n", "git lfs"),
    "a web page": refused("x.jsonl", "\n<!DOCTYPE html>\n<html>", "a web page, as a download that failed"),
    "UTF-32": refused("x.jsonl", LINES.encode("utf-32"), "data.encoding = 'utf-32'"),
    "UTF-16 without a mark": refused("x.jsonl", LINES.encode("utf-16-le"), "data.encoding = 'utf-16-le'"),
    "UTF-16 of the other order": refused("x.csv", TABLE.encode("utf-16-be"), "data.encoding = 'utf-16-be'"),
    "UTF-8 read as UTF-16": refused("x.jsonl", LINES, "data.encoding = 'utf-8'", encoding="utf-16"),
    "two arrays": refused("x.json", json.dumps(ROWS) + "\n" + json.dumps(ROWS), "stands after the end"),
    "text after an array": refused("x.json", json.dumps(ROWS) + SECRET, "stands after the end"),
    "a table by columns": refused("x.json", json.dumps({"prompt": {"0": SECRET}}), "an array of objects"),
    "a whole number of 5000 digits": refused(
        "x.jsonl", '{"prompt": %s, "completion": "yes"}' % ("9" * 5000), "a number of too many digits"
    ),
    "an infinite number": refused("x.jsonl", '{"prompt": "q", "completion": Infinity}', "is infinite"),
    "an object over lines": refused("x.jsonl", json.dumps(ROWS[0], indent=1), "does not end on the line"),
    "a comma after an object": refused("x.jsonl", LINES[:-1] + ",\n", "leave out the comma"),
    "single quotes": refused("x.jsonl", str({"prompt": SECRET}), "double quotes"),
    "a file that a crash filled with zeros": refused("x.jsonl", LINES + "\0" * 99, "line 5: not a JSON"),
    "a quote after blanks": refused("x.csv", TABLE + f'{SECRET}, "yes"\n', "line 6: blanks stand before"),
    "a table without names": refused(
        "x.csv", f"the patient {SECRET} has a long history,yes\n" + BODY, "nearest: yes"
    ),
    "a table in which nothing is a name": refused(
        "x.csv", f"the patient {SECRET} is here;a long answer stands there\n1;2\n", "none of its 2 columns"
    ),
    "chats where prompts are asked for": refused(
        "x.jsonl", json.dumps({"messages": []}), "chats are read with data.messages = 'messages'"
    ),
    "Zstandard cut off": refused(
        "x.jsonl.zst", pyarrow.compress(LINES.encode(), "zstd", asbytes=True)[:30], "cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_and_no_text_of_it(tmp_path, name):
    place, content, says, settings = REFUSED[name]
    file = put(tmp_path / place, content)
    with pytest.raises(DataError) as refusal:
        read_records(file, DataConfig(**settings))
    assert str(file) in str(refusal.value) and says in str(refusal.value), str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_lines_are_counted_from_the_top_of_the_file(tmp_path):
    """Excel's first line and empty ones count too."""
    file = put(tmp_path / "x.csv", "sep=;\n\nprompt;completion\nq;\n")
    with pytest.raises(DataError, match=r"x\.csv line 4: 'completion' is empty"):
        read_records(file, DataConfig())


def test_another_encoding_than_the_files_is_noted(tmp_path):
    notes = Notes()
    read_records(
        put(tmp_path / "x.csv", TABLE + "caf\u00e9,yes\n"), DataConfig(encoding="cp1252"), notes=notes
    )
    assert "is UTF-8 as it seems" in notes.lines()[0]
    notes = Notes()
    right = put(tmp_path / "y.csv", (TABLE + "caf\u00e9,yes\n").encode("cp1252"))
    read_records(right, DataConfig(encoding="cp1252"), notes=notes)
    assert not notes.lines()


def labelled(*classes):
    """A data set whose answers are numbers of classes."""
    kinds = {"prompt": datasets.Value("string"), "completion": datasets.ClassLabel(names=["neg", "pos"])}
    rows = {"prompt": [f"q {n}" for n in range(len(classes))], "completion": list(classes)}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


@pytest.mark.parametrize("name", ["saved", "x.parquet"])
def test_classes_of_datasets_have_their_names(tmp_path, name):
    for file, data in (("good", labelled(1, 0)), ("hidden", labelled(1, -1))):
        place = tmp_path / file / name
        place.parent.mkdir()
        data.save_to_disk(str(place)) if name == "saved" else data.to_parquet(str(place))
    assert [r.completion for r in read_records(tmp_path / "good" / name, DataConfig())] == ["pos", "neg"]
    with pytest.raises(DataError, match=r"row 2: column 'completion' .* holds none of its classes"):
        read_records(tmp_path / "hidden" / name, DataConfig())


def test_splits_in_folders_are_not_mixed(tmp_path):
    """As the Hub lays out data: one folder a split, and a description beside them."""
    for split in ("train", "test", "validation"):
        write_lines(tmp_path / "data" / split / "0000.jsonl", ROWS if split == "train" else ROWS[:1])
    (tmp_path / "data" / "dataset_infos.json").write_text("{}")
    notes = Notes()
    assert read_records(tmp_path / "data", DataConfig(), notes=notes) == EXPECTED
    assert f"data.test = '{tmp_path / 'data' / 'test' / '0000.jsonl'}'" in notes.lines()[0]


def test_folders_of_organisations(tmp_path):
    for name in ("clinic", "bank"):
        write_lines(tmp_path / name / "part.jsonl", ROWS)
    (tmp_path / "empty").mkdir()
    notes = Notes()
    assert read_folder(tmp_path, DataConfig(), notes) == {"bank": EXPECTED, "clinic": EXPECTED}
    assert "no data of a known format: empty" in notes.lines()[0]


def test_splits_are_no_organisations(tmp_path):
    for name in ("train", "test"):
        write_lines(tmp_path / f"{name}.jsonl", ROWS)
    with pytest.raises(DataError, match=r"holds test, train: splits of one data set"):
        read_folder(tmp_path, DataConfig())


def test_names_of_organisations_can_be_printed(tmp_path):
    write_lines(tmp_path / "Klinik Z\u00fcrich 1.jsonl", ROWS)
    assert list(read_folder(tmp_path, DataConfig())) == ["Klinik Z\u00fcrich 1"]
    write_lines(tmp_path / "a\nb.jsonl", ROWS)
    with pytest.raises(DataError, match=r"named 'a\\nb'; organisations need printable names"):
        read_folder(tmp_path, DataConfig())


def test_records_of_the_test_that_are_trained_on_are_noted(fedpeft, settings, inputs):
    """A figure on records that were trained on says little."""
    options = settings(data__test=inputs.data("orgs/bank.jsonl"))
    facts = json.loads(fedpeft("data", "show", "--json", *options).out)
    trained = sum(size["train"] for size in facts["sizes"].values())
    assert facts["notes"] == [
        f"of the global test are trained on too, so that its figures flatter: {trained} records"
    ]


@pytest.mark.parametrize("source", ["https://host/x.jsonl", "tatsu-lab/alpaca"])
def test_nothing_is_downloaded_and_that_is_said(fedpeft, settings, source):
    done = fedpeft("data", "show", *settings(data__source=source))
    assert done.code == 3 and f"no data at {source!r}" in done.error and "fetch it" in done.error


def test_home_in_a_path_is_found(fedpeft, settings, inputs, monkeypatch):
    """Inside ``--set`` no shell replaces it."""
    monkeypatch.setenv("HOME", str(inputs.root))
    assert fedpeft("data", "show", *settings(data__source="~/data/orgs/bank.jsonl")).code == 0
