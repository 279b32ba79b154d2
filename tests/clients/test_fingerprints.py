"""The same records get no second budget: copies, links, other formats, labels, parts and edits are known.

Adversary: none but haste; whoever adds a data set of this organisation under a second name.
"""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedpeft.data import Record
from fedpeft.errors import PrivacyError
from fedpeft_clients.cli.doctor import examine
from fedpeft_clients.cli.node import register
from fedpeft_clients.governance.organisation import init_organisation
from fedpeft_clients.governance.policy import template
from fedpeft_clients.governance.record_overlap import LEAST, MOST, hashes, share

KEY = bytes(range(32))


def notes(count, start=0):
    """Records that have no text in common unless their numbers are."""
    rng = [np.random.default_rng(number) for number in range(start, start + count)]
    words = [" ".join(f"w{word}" for word in one.integers(10**6, size=8)) for one in rng]
    return [{"prompt": f"Patient {n}: {text}", "completion": "ill"} for n, text in enumerate(words, start)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def clinic(tmp_path):
    made = init_organisation(tmp_path / "clinic", "clinic", template("strict"))
    file = write(tmp_path / "notes.jsonl", notes(100))
    assert add(made, "notes", file, "patients").exit_code == 0
    return made


def add(made, name, file, lineage, *options):
    app = typer.Typer()
    register(app)
    words = ["node", "data", "add", name, file, "--budget-id", lineage, "--home", made.path, *options]
    return CliRunner().invoke(app, [str(word) for word in words])


def copied(path, rows):
    return write(path, rows), ()


def linked(path, rows):
    os.link(path.parent / "notes.jsonl", path)
    return path, ()


def as_csv(path, rows):
    path = path.with_suffix(".csv")
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer"])
        table.writerows([row["prompt"], row["completion"]] for row in rows)
    return path, ("--prompt-column", "question", "--completion-column", "answer")


def as_chats(path, rows):
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    return write(path, [{"talk": chat} for chat in chats]), ("--messages-column", "talk")


def relabelled(path, rows):
    return write(path, [row | {"completion": f"code {n}"} for n, row in enumerate(rows)]), ()


def swapped(path, rows):
    flip = [{"prompt": "Write a note", "completion": row["prompt"]} for row in rows]
    return write(path, flip), ()


def typed_otherwise(path, rows):
    other = [row | {"prompt": "  " + row["prompt"].upper().replace(" ", " \t") + "!"} for row in rows]
    return write(path, other[::-1]), ()


def part(path, rows):
    return write(path, rows[:7]), ()


def with_others_around(path, rows):
    return write(path, notes(900, 1000) + rows), ()


def repeated(path, rows):
    return write(path, rows * (MOST + 5)), ()


WAYS = (
    copied,
    linked,
    as_csv,
    as_chats,
    relabelled,
    swapped,
    typed_otherwise,
    part,
    with_others_around,
    repeated,
)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_records_under_a_second_lineage_are_refused(clinic, tmp_path, way):
    file, options = way(tmp_path / "other.jsonl", notes(100))
    left = add(clinic, "other", file, "fresh", *options)
    assert isinstance(left.exception, PrivacyError)
    said = str(left.exception)
    assert "patients" in said and "max_overlap" in said and "--budget-id patients" in said
    assert "Patient" not in said and "\n" not in said
    assert list(clinic.datasets()) == ["notes"], "nothing is registered"
    assert add(clinic, "other", file, "patients", *options).exit_code == 0, "the same id may"


@pytest.mark.parametrize(("common", "refused"), [(0, False), (5, False), (6, True), (60, True)])
def test_an_edited_copy_is_judged_by_the_share_that_it_has_in_common(clinic, tmp_path, common, refused):
    file = write(tmp_path / "other.jsonl", notes(common) + notes(100 - common, 5000))
    left = add(clinic, "other", file, "fresh", "--json")
    assert isinstance(left.exception, PrivacyError) == refused
    if not refused:
        found = json.loads(left.stdout)["in_common"]
        assert found == (
            [{"lineage": "patients", "records": common, "share": common / 100}] if common else []
        )
        assert ("warning" in left.stderr) == bool(common)


def test_the_policy_says_what_share_is_allowed(clinic, tmp_path):
    file = write(tmp_path / "other.jsonl", notes(100))
    text = clinic.policy.read_text()
    clinic.policy.write_text(text.replace("max_overlap = 0.05 ", "max_overlap = 1.0 "))
    left = add(clinic, "other", file, "fresh")
    assert (
        left.exit_code == 0 and "100 of its records are under privacy-budget id 'patients' too" in left.stderr
    )
    clinic.policy.write_text("nonsense")
    assert add(clinic, "third", file, "new").exit_code != 0


def test_what_a_lineage_ever_held_is_remembered_after_its_file_was_edited(clinic, tmp_path):
    write(tmp_path / "notes.jsonl", notes(100, 300))
    assert add(clinic, "notes", tmp_path / "notes.jsonl", "patients").exit_code == 0
    file = write(tmp_path / "old.jsonl", notes(100))
    assert isinstance(add(clinic, "old", file, "fresh").exception, PrivacyError)


def test_a_file_that_became_a_copy_later_is_found_by_doctor_and_by_approve(clinic, tmp_path):
    file = write(tmp_path / "other.jsonl", notes(50, 7000))
    assert add(clinic, "other", file, "fresh").exit_code == 0
    write(file, notes(50))
    wrong = [one["words"] for one in examine(clinic) if (one["check"], one["state"]) == ("data", "wrong")]
    assert len(wrong) == 1 and "max_overlap" in wrong[0]
    app = typer.Typer()
    register(app)
    asked = ["node", "approve", "0123", "--data", "other", "--home", str(clinic.path)]
    assert isinstance(CliRunner().invoke(app, asked).exception, PrivacyError)


def test_a_data_set_of_before_is_read_when_another_is_added(clinic, tmp_path):
    for file in clinic.records.iterdir():
        file.unlink()
    other = write(tmp_path / "other.jsonl", notes(100))
    assert isinstance(add(clinic, "other", other, "fresh").exception, PrivacyError)
    (tmp_path / "notes.jsonl").unlink()
    for file in clinic.records.iterdir():
        file.unlink()
    assert add(clinic, "other", other, "fresh").exit_code != 0, "what cannot be compared is not added"


def test_key_and_hashes_are_for_their_owner_and_tell_nothing_without_the_key(clinic, tmp_path):
    files = [clinic.path / "records.key", *clinic.records.iterdir()]
    assert len(files) == 2 and all(file.stat().st_mode & 0o077 == 0 for file in files)
    assert clinic.records.stat().st_mode & 0o077 == 0
    assert all(b"Patient" not in file.read_bytes() for file in files)
    records = [Record(row["prompt"], row["completion"]) for row in notes(100)]
    assert share(hashes(records, KEY), hashes(records, KEY)) == (100, 1.0)
    assert share(hashes(records, KEY), hashes(records, KEY[::-1])) == (0, 0.0)
    files[0].unlink()
    other = write(tmp_path / "other.jsonl", notes(10, 9000))
    assert isinstance(add(clinic, "other", other, "fresh").exception, PrivacyError), "a new key knows nothing"


def test_templates_and_short_labels_make_no_two_data_sets_the_same():
    instruction = "Classify the mood of the following sentence, please"
    assert len(instruction) >= LEAST

    def mood(start):
        return [Record(instruction, f"mood {number}") for number in range(start, start + 2 * MOST)]

    assert share(hashes(mood(0), KEY), hashes(mood(100), KEY)) == (0, 0.0)
    short = [[Record(f"{name} {number}", "yes") for number in range(50)] for name in ("cat", "dog")]
    assert share(*(hashes(records, KEY) for records in short)) == (0, 0.0)
    assert share(hashes(mood(0), KEY), hashes(mood(10), KEY)) == (MOST, 0.5)


def test_records_without_a_letter_are_told_apart_and_empty_sets_share_nothing():
    faces = [[Record(":)", f"{'!' * number}") for number in range(1, count)] for count in (4, 6)]
    assert share(*(hashes(records, KEY) for records in faces)) == (3, 1.0)
    nothing = hashes([], KEY)
    assert nothing.shape == (0, 3) and share(nothing, hashes(faces[0], KEY)) == (0, 0.0)
