"""Parquet and Arrow files, folders of `datasets`: rows whose columns are only decoded when they are used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpeft.data.text_files import DOUBLE
from fedpeft.errors import DataError
from fedpeft.extras import needs
from fedpeft.foreign_files import kind_of_file

Columns = Mapping[str, Any]
Named = tuple[str, Columns | str]


class ArrowRow(Mapping[str, Any]):
    """One row of a table by name of its columns; a column is decoded when it is asked for.

    A value that Python has no form for (a date in year 0) spoils its own row alone: it is a `DataError`, and
    so is a column whose name stands twice. A class that `datasets` keeps as a number (``ClassLabel``) has its
    name as its value.
    """

    def __init__(self, table: Any, number: int, classes: Mapping[str, Sequence[str]]) -> None:
        self._table, self._number, self._classes = table, number, classes

    def __getitem__(self, name: str) -> Any:
        places = self._table.schema.get_all_field_indices(name)
        if len(places) != 1:
            if not places:
                raise KeyError(name)
            return DataError(DOUBLE)
        try:
            value = self._table.column(places[0])[self._number].as_py()
        except Exception as error:  # the error would carry the value
            return DataError(f"cannot be read ({type(error).__name__})")
        classes = self._classes.get(name)
        if classes is None or not isinstance(value, int):
            return value
        return classes[value] if 0 <= value < len(classes) else DataError("holds none of its classes")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._table.schema.names))

    def __len__(self) -> int:
        return len(set(self._table.schema.names))


def read_parquet(path: Path) -> Iterator[tuple[str, Columns]]:
    """The rows of one Parquet file.

    Raises:
        DataError: it cannot be read.
    """
    with needs("datasets", "a Parquet file"):
        import pyarrow.parquet as pq

    yield from _numbered(_batches(path, "Parquet", lambda: pq.ParquetFile(path).iter_batches()))


def read_arrow(path: Path) -> Iterator[tuple[str, Columns]]:
    """The rows of one Arrow file: Feather, or the stream that `datasets` keeps.

    Raises:
        DataError: it cannot be read.
    """
    with needs("datasets", "an Arrow file"):
        from pyarrow import ipc, memory_map

    def batches() -> Iterable[Any]:
        source = memory_map(str(path))
        if source.read(6) != b"ARROW1":
            source.seek(0)
            return ipc.open_stream(source)
        whole = ipc.open_file(source)
        return map(whole.get_batch, range(whole.num_record_batches))

    yield from _numbered(_batches(path, "Arrow", batches))


def _batches(path: Path, kind: str, read: Callable[[], Iterable[Any]]) -> list[Any]:
    """All batches of a file, or the one line on why there are none."""
    import pyarrow as pa

    try:
        return list(read())
    except PermissionError:
        cause = "permission denied; the user that runs fedpeft must be able to read it"
    except (pa.ArrowException, OSError) as error:
        cause = f"it is not a readable {kind} file ({type(error).__name__}); write it again"
        if (other := kind_of_file(path)) and kind not in other:
            cause = f"it is {other}"
    raise DataError(f"{path} cannot be read: {cause}")


def _numbered(tables: Iterable[Any]) -> Iterator[tuple[str, Columns]]:
    count = 0
    for table in tables:
        classes = _classes_of(table.schema)
        for number in range(table.num_rows):
            yield f"row {count + number + 1}", ArrowRow(table, number, classes)
        count += table.num_rows


def _classes_of(schema: Any) -> dict[str, list[str]]:
    """The names of the classes of each column that `datasets` marks as classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        marked = {name: feature for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
        return {name: [str(text) for text in feature["names"]] for name, feature in marked.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def read_dataset(path: Path) -> Iterator[Named]:
    """The rows of a folder that ``save_to_disk`` wrote; of several splits of ``train``, which a note says.

    Raises:
        DataError: it cannot be read, or has several splits and none is called train.
    """
    with needs("datasets", "a folder saved by datasets"):
        import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # a broken folder fails in many ways; the text stays here
        cause = type(error).__name__
    else:
        if isinstance(data, datasets.DatasetDict):
            others = sorted(str(name) for name in data if name != "train")
            if "train" not in data and len(others) > 1:
                raise DataError(
                    f"{path} has the splits {', '.join(others)} and none called train; give one of them: "
                    f"{path / others[0]}"
                )
            name = "train" if "train" in data else others[0]
            data = data[name]
            if name == "train" and others:
                yield "", unread(path, others, path / ("test" if "test" in others else others[0]))
        # one batch at a time; nothing is decoded, neither pictures nor sound
        yield from _numbered(data.with_format("arrow").iter(1000) if len(data) else ())
        return
    raise DataError(f"{path} is not a readable datasets folder ({cause}); write it with save_to_disk")


def unread(path: Path, splits: list[str], test: Path) -> str:
    """A note on splits that are not trained on, and how to judge by one of them."""
    names = ", ".join(splits)
    return f"{path}: only its split train is read, not {names}; to judge by one: data.test = '{test}'"
