"""Files as people keep them; each with the public reports that it comes from."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Notes, Record, read_folder, read_records, read_written, write_records

from .input_data import records

ROWS = records("x")
EXPECTED = [Record(row["prompt"], row["completion"]) for row in ROWS]


def shown(fedpeft, options):
    """What ``data show`` says of all records of a federation."""
    done = fedpeft("data", "show", "--json", "--samples", 99, *options)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    return [record for part in facts["organisations"].values() for record in part], facts["notes"]


@pytest.mark.parametrize(
    "name",
    [
        "plain_array.json",  # C33: LLaMA2-Accessory#18, litgpt#204, GLM-4#184
        "pandas_index.csv",  # C35: modin#3134, pandas PR#23687, billy#18
        "tab.tsv",  # C39: levanter PR#369
        "semicolon.csv",
        "rows.jsonl.gz",
    ],
)
def test_an_ordinary_file_of_another_kind_gives_the_same_records(fedpeft, settings, inputs, name):
    assert read_records(inputs.data(f"odd/{name}"), DataConfig()) == EXPECTED
    rows, notes = shown(fedpeft, settings(source=f"odd/{name}"))
    assert rows and not notes and {row["completion"] for row in rows} == {"yes", "no"}


@pytest.mark.parametrize(("pack", "ending"), [(gzip, ".gz"), (bz2, ".bz2"), (lzma, ".xz")])
def test_compressed_tables(tmp_path, pack, ending):
    file = tmp_path / f"bank.tsv{ending}"
    file.write_bytes(pack.compress(b"prompt\tcompletion\na, b\tyes\n"))
    assert read_folder(tmp_path, DataConfig()) == {"bank": [Record("a, b", "yes")]}


def test_columns_of_alpaca_are_joined_by_a_template(fedpeft, settings, inputs, tmp_path):
    """C33: oobabooga/textgen#2500, alpaca-lora#565."""
    template = "{instruction}\n{input}\n{output}"
    rows, _ = shown(fedpeft, settings(source="odd/alpaca.json", data__template=template))
    assert {row["prompt"].split("\n")[1] for row in rows} == {"context"}
    cfg = DataConfig(template=template)
    read = read_records(inputs.data("odd/alpaca.json"), cfg)
    assert read[3] == Record(
        "question 3 x\ncontext\n", "yes", fields=(("instruction", "question 3 x"), ("input", "context"))
    )
    write_records(tmp_path / "w.jsonl", read)
    assert read_written(tmp_path / "w.jsonl", cfg) == read
    done = fedpeft(
        "simulate", "--quiet", "--out", tmp_path / "run",
        *settings(source="odd/alpaca.json", data__template=template, audit__canaries=2),
    )  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.parametrize("text", ['{"rows": [%s]}', "[\n%s\n]", " [%s]", "\ufeff[%s]"])
def test_json_arrays(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text % ",\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    assert read_records(file, DataConfig()) == EXPECTED


def test_json_lines_in_a_file_called_json(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    assert read_records(file, DataConfig()) == EXPECTED


@pytest.mark.parametrize("folder", ["orgs_mac", "orgs_lock"])
def test_hidden_and_lock_files_are_no_organisations(fedpeft, settings, folder):
    """C36: pybids#1069, llama_index#88, geo-activity-playground#83."""
    options = settings(source=folder, data__partition="file")
    done = fedpeft("data", "show", "--json", *options)
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["organisations"]) == ["bank", "clinic"]


def test_a_file_that_is_not_read_is_named(tmp_path):
    """A table of a kind that is not read must not vanish in silence."""
    write_records(tmp_path / "bank.jsonl", EXPECTED)
    (tmp_path / "clinic.xlsx").write_bytes(b"PK")
    notes = Notes()
    assert list(read_folder(tmp_path, DataConfig(), notes)) == ["bank"]
    assert "clinic.xlsx" in notes.lines()[0]


@pytest.mark.parametrize(("name", "encoding"), [("cp1252.csv", "cp1252"), ("utf16.csv", "utf-16")])
def test_an_encoding_is_a_setting_and_the_likely_one_is_named(fedpeft, settings, name, encoding):
    """C37: pandas#34303, #8967, cudf#12516."""
    wrong = fedpeft("data", "show", *settings(source=f"odd/{name}"))
    assert wrong.code == 3 and name in wrong.error
    assert f"data.encoding = '{encoding}'" in wrong.error
    rows, _ = shown(fedpeft, settings(source=f"odd/{name}", data__encoding=encoding))
    assert len(rows) > 20


@pytest.mark.parametrize(("kind", "labels"), [("bool", {"true", "false"}), ("float", {"0.0", "1.0"})])
def test_labels_that_are_no_text(fedpeft, settings, kind, labels):
    """C40: llm_finetuning#5, unsloth#1766."""
    rows, _ = shown(fedpeft, settings(source=f"odd/{kind}.parquet"))
    assert {row["completion"] for row in rows} == labels


def test_a_double_column_only_matters_where_it_is_used(tmp_path):
    """C35: pandas and others write unnamed and double columns."""
    table, lines = tmp_path / "x.csv", tmp_path / "x.jsonl"
    table.write_text(",note,note,prompt,completion,\n1,a,b,q,yes,\n")
    assert read_records(table, DataConfig()) == [Record("q", "yes")]
    lines.write_text('{"note": 1, "note": 2, "prompt": "q", "completion": "yes"}\n')
    assert read_records(lines, DataConfig()) == [Record("q", "yes")]
    for file, place in ((table, "line 2"), (lines, "line 1")):
        with pytest.raises(Exception, match=rf"{place}: column 'note' \(data.prompt\) stands twice"):
            read_records(file, DataConfig(prompt="note"))


def test_very_long_fields(tmp_path):
    text = "word " * 100_000
    (tmp_path / "x.csv").write_text(f"prompt,completion\n{text},yes\n")
    assert read_records(tmp_path / "x.csv", DataConfig()) == [Record(text, "yes")]


def _parts(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        rows = [{"prompt": f"{name} {n}", "completion": "yes"} for n in range(3)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)


def test_a_folder_of_parquet_parts(tmp_path):
    """C39: one data set in parts, as Spark and the Hub write it; in a federation one organisation."""
    _parts(tmp_path / "bank", "part-0.snappy.parquet", "part-1.snappy.parquet")
    (tmp_path / "bank" / "_SUCCESS").touch()
    (tmp_path / "bank" / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    read = read_records(tmp_path / "bank", DataConfig())
    assert [record.prompt for record in read][2:4] == ["part-0.snappy.parquet 2", "part-1.snappy.parquet 0"]
    assert read_folder(tmp_path, DataConfig()) == {"bank": read}


def test_splits_of_parts_and_of_a_dataset_dict_are_not_mixed(tmp_path):
    """C47: what is not trained on is said, with what to do with it."""
    _parts(tmp_path / "hub" / "data", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    whole = datasets.Dataset.from_list(ROWS)
    parts = {"train": whole, "validation": whole.select([0]), "test": whole.select([1])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "dict"))
    for folder, test in (("hub", "data/test-00000-of-00001.parquet"), ("dict", "test")):
        notes = Notes()
        read = read_records(tmp_path / folder, DataConfig(), notes=notes)
        assert len(read) == (3 if folder == "hub" else len(ROWS))
        assert f"data.test = '{tmp_path / folder / test}'" in notes.lines()[0]
    assert read_records(tmp_path / "dict" / "test", DataConfig()) == EXPECTED[1:2]
    datasets.DatasetDict({"a": whole, "b": whole}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(Exception, match="has the splits a, b and none called train"):
        read_records(tmp_path / "other", DataConfig())


@pytest.mark.parametrize("column", [datasets.Audio, datasets.Image])
def test_sound_and_pictures_that_are_not_used_are_not_decoded(tmp_path, column):
    """C46: datasets#7678, #7707, #7798."""
    rows = {key: [row[key] for row in ROWS] for key in ROWS[0]} | {
        "media": [{"path": None, "bytes": b"no sound"}] * len(ROWS)
    }
    datasets.Dataset.from_dict(rows).cast_column("media", column()).save_to_disk(str(tmp_path / "d"))
    assert read_records(tmp_path / "d", DataConfig()) == EXPECTED


def test_a_date_that_python_cannot_hold_only_matters_where_it_is_used(tmp_path):
    days = pyarrow.array([0, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    table = pyarrow.Table.from_pylist(ROWS[:2]).append_column("seen", days)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert read_records(tmp_path / "x.parquet", DataConfig()) == EXPECTED[:2]
    with pytest.raises(Exception, match=r"row 2: column 'seen' .* cannot be read"):
        read_records(tmp_path / "x.parquet", DataConfig(partition_column="seen"))
