"""The command line as a user meets it: one clear line and the documented exit code for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FEDPEFT = str(Path(sys.executable).parent / "fedpeft")


def _fedpeft(*arguments):
    return subprocess.run([FEDPEFT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for name in ("a", "b"):
        rows = [{"prompt": f"{name} secret text {i}", "completion": " yes"} for i in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (["federation.round=3"], 2, "unknown setting 'federation.round'; the nearest setting is"),
        (["run.seed=x"], 2, "run.seed"),
        (["base.model={tmp}/absent"], 4, "absent"),
        (["base.sha256=" + "0" * 64], 4, "sha256"),
        (["data.source={tmp}/absent"], 3, "no data at"),
        (["data.source={tmp}/records", "data.prompt=promt"], 3, "promt"),
    ],
)
def test_a_mistake_gives_one_line_and_no_half_run(tmp_path, records, settings, code, message):
    options = [part for setting in settings for part in ("--set", setting.format(tmp=tmp_path))]
    done = _fedpeft("simulate", "--out", tmp_path / "run", *options)
    assert done.returncode == code
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_broken_row_is_named_by_its_line_and_never_quoted(tmp_path, records):
    with (records / "a.jsonl").open("a") as file:
        file.write('{"prompt": "secret diagnosis", "completion": \n')
    done = _fedpeft("simulate", "--out", tmp_path / "run", "--set", f"data.source={records}")
    assert done.returncode == 3
    assert "a.jsonl" in done.stderr and "13" in done.stderr
    assert "secret" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_taken_directory_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    for options in ([], ["--overwrite"]):
        done = _fedpeft("simulate", "--out", tmp_path / "run", *options)
        assert done.returncode == 8
        assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_machine_readable_commands_print_json():
    for command in (("config", "show"), ("config", "schema"), ("doctor",)):
        options = () if command == ("config", "schema") else ("--json",)
        done = _fedpeft(*command, *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_data_show_prints_samples_of_each_organisation():
    done = _fedpeft("data", "show", "--json", "--set", "data.samples=20", "--samples", 1)
    shown = json.loads(done.stdout)
    assert len(shown["organisations"]) == 4
    assert all(len(records) == 1 for records in shown["organisations"].values())


def test_version_is_printed_from_any_folder(tmp_path):
    done = subprocess.run([FEDPEFT, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("fedpeft ")


def test_adapter_commands_on_a_packed_adapter(tmp_path, tiny_adapter):
    from fedpeft.adapters.export import export

    export(tiny_adapter, tmp_path / "adapter")
    packed = json.loads(
        _fedpeft("adapter", "pack", tmp_path / "adapter", "-o", tmp_path / "a.fpa", "--json").stdout
    )
    assert (tmp_path / "a.fpa").stat().st_size == packed["bytes_total"]
    assert json.loads(_fedpeft("adapter", "info", tmp_path / "a.fpa", "--json").stdout) == packed
    assert _fedpeft("adapter", "unpack", tmp_path / "a.fpa", "-o", tmp_path / "back").returncode == 0
    assert (tmp_path / "back" / "adapter_model.safetensors").is_file()
    again = _fedpeft("adapter", "unpack", tmp_path / "a.fpa", "-o", tmp_path / "back")
    assert again.returncode == 2 and "exists" in again.stderr


def test_eval_names_what_is_missing(tmp_path):
    for command in ("eval", "merge"):
        options = () if command == "eval" else ("-o", tmp_path / "out")
        done = _fedpeft("adapter", command, tmp_path / "absent", *options)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_data_write_gives_each_organisation_its_file(tmp_path):
    sizes = ("--set", "data.samples=20", "--set", "data.test_samples=8", "--set", "federation.nodes=2")
    done = _fedpeft("data", "write", tmp_path, *sizes)
    assert done.returncode == 0, done.stderr
    counts = {path.stem: len(path.read_text().splitlines()) for path in tmp_path.glob("*.jsonl")}
    assert counts == {"bank": 20, "hospital": 20, "test": 8}
