"""Parquet files and folders of `datasets`: rows whose columns are only decoded when they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.data.text_files import DOUBLE
from fedpeft.errors import DataError
from fedpeft.extras import needs

Columns = Mapping[str, Any]
Named = tuple[str, Columns | str]


class ArrowRow(Mapping[str, Any]):
    """One row of a table by name of its columns; a column is decoded when it is asked for.

    A value that Python has no form for (a date in year 0) spoils its own row alone: it is a `DataError`, and
    so is a column whose name stands twice.
    """

    def __init__(self, table: Any, number: int) -> None:
        self._table, self._number = table, number

    def __getitem__(self, name: str) -> Any:
        places = self._table.schema.get_all_field_indices(name)
        if len(places) != 1:
            if not places:
                raise KeyError(name)
            return DataError(DOUBLE)
        try:
            return self._table.column(places[0])[self._number].as_py()
        except Exception as error:  # the error would carry the value
            return DataError(f"cannot be read ({type(error).__name__})")

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
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        batches = list(pq.ParquetFile(path).iter_batches())
    except PermissionError:
        cause = "permission denied; the user that runs fedpeft must be able to read it"
    except (pa.ArrowException, OSError) as error:
        cause = f"it is not a readable Parquet file ({type(error).__name__}); write it again"
    else:
        yield from _numbered(batches)
        return
    raise DataError(f"{path} cannot be read: {cause}")


def _numbered(tables: Iterable[Any]) -> Iterator[tuple[str, Columns]]:
    count = 0
    for table in tables:
        for number in range(table.num_rows):
            yield f"row {count + number + 1}", ArrowRow(table, number)
        count += table.num_rows


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
