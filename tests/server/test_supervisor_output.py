"""What processes print stays bounded while they run, and is safe to show."""

import os
import sys
import time

import pytest

from fedpeft_server.service import output_file
from fedpeft_server.service.child_process import Child, stop_all
from fedpeft_server.service.output_file import CUT, LONGEST_LINE, keep_output, shown


def kept(tmp_path, *writes):
    """The file after some bytes have been printed."""
    reading, writing = os.pipe()
    thread = keep_output(os.fdopen(reading, "rb"), tmp_path / "link.log")
    with os.fdopen(writing, "wb") as printed:
        for data in writes:
            printed.write(data)
    thread.join(20)
    assert not thread.is_alive()
    return (tmp_path / "link.log").read_bytes()


def test_lines_are_kept_as_they_are(tmp_path):
    assert kept(tmp_path, b"one\n", b"two\twords\n", b"no end") == b"one\ntwo\twords\nno end\n"


def test_control_characters_are_escaped(tmp_path):
    assert kept(tmp_path, b"\x1b[2J\x07 \xff \r gone\n") == b"\\x1b[2J\\x07 \\xff \\x0d gone\n"


@pytest.mark.parametrize("length", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1, 4_000_000])
def test_a_line_is_cut(tmp_path, length):
    found = kept(tmp_path, b"A" * length + b"\nnext\n")
    line = b"A" * min(length, LONGEST_LINE) + (CUT if length > LONGEST_LINE else b"")
    assert found == line + b"\nnext\n"
    assert len(shown(b"\x00" * 10_000)) <= 4 * LONGEST_LINE + len(CUT) + 1


def test_the_file_is_bounded_while_the_process_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(output_file, "LARGEST_OUTPUT", 10_000)
    (tmp_path / "talks.py").write_text(
        "import time\nfor number in range(20_000): print(f'line {number}', flush=False)\n"
        "print('all', flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    child, end = Child(("talks",), tmp_path / "link.log"), time.monotonic() + 60
    child.start_if_due()
    try:
        while child.last_line() != "all":
            assert time.monotonic() < end
            time.sleep(0.1)
        assert child.alive
        files = sorted(path.name for path in tmp_path.glob("link*"))
        assert files == ["link.1.log", "link.log"]
        assert all((tmp_path / name).stat().st_size <= 10_000 for name in files)
    finally:
        stop_all([child])


def test_a_full_disk_holds_up_nobody(tmp_path):
    """A folder that is gone, like a full disk, refuses the line; the pipe is read to its end all the same."""
    reading, writing = os.pipe()
    thread = keep_output(os.fdopen(reading, "rb"), tmp_path / "gone" / "link.log")
    with os.fdopen(writing, "wb") as printed:
        printed.write(b"line\n" * 100_000)
    thread.join(20)
    assert not thread.is_alive() and sys.stderr is not None


def test_the_last_words_of_a_process_are_there_when_its_end_is_told(tmp_path):
    child, end = Child(("fedpeft_server.no_such_module",), tmp_path / "log"), time.monotonic() + 60
    child.start_if_due()
    while child.ended() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "no_such_module" in child.last_line()
