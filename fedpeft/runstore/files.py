"""Writes that are whole or not there, and where they go."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpeft.errors import ConfigError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    The bytes are on the disk (fsync) before the name appears.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(out: Path) -> Generator[Path]:
    """A new folder beside ``out`` to write into, which takes its place at the end, whole or not at all.

    Raises:
        ConfigError: it cannot be written, as on a full disk.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
            folder = Path(made) / "whole"
            folder.mkdir()
            yield folder
            folder.replace(out)


@contextmanager
def writing(out: Path) -> Generator[None]:
    """Turn what a file system says while a user's output is written into one line.

    Raises:
        ConfigError: it cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{str(out)!r} cannot be written: {cause}; choose another --out") from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically, with sorted keys left as given."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write values as JSON, one a line, atomically; text stays as it is, in UTF-8."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk (fsync)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, missing: Any) -> Any:
    """The JSON object of a file, or a given value where there is no file.

    Raises:
        ConfigError: the file holds no JSON object.
    """
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        return missing
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object; restore it from a backup")
    return facts


def append_whole(path: Path, line: bytes, mode: int = 0o644) -> None:
    """Append to a file, made with ``mode`` if it is not there; a disk that is full leaves it as it was.

    Raises:
        OSError: the line cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        end = os.fstat(handle).st_size
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(handle, end)
            raise
    finally:
        os.close(handle)


def state_root() -> Path:
    """Folder of all roles on this machine: ``$FEDPEFT_HOME``, or the platform's."""
    if folder := os.environ.get("FEDPEFT_HOME"):
        return Path(folder).expanduser()
    from platformdirs import user_state_dir

    return Path(user_state_dir("fedpeft"))
