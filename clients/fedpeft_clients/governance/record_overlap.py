"""Which records each privacy-budget id covers, as keyed hashes, so that the same data get no second budget.

The organisation stores, for each id, hashes of all records that were ever added to it, under a key of its
own (``records.key``); key and hashes (``records/``) are for their owner only and never leave. A data set is
compared with those of every other id when it is added, when terms that use it are agreed on, and before a
round if its file has changed since. A copy, a hard link, another format, other columns or labels, a part of
the records or more around them are all the same records.

A record is known by three hashes: of prompt and completion together, and of each of the two that has at least
`LEAST` characters, unless more than `MOST` records share that text, as they do a template. Before hashing, a
text is normalised: Unicode NFKC, case folded, and everything but letters, digits and underscores is one
blank. Two records are the same if one of their hashes is. The share of two data sets is the larger of the
share of the one's records that the other holds, and the reverse.

What it does not see: a record in which even one word of every text was changed. Records in common below the
policy's share are named, and allowed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Record, read_records
from fedpeft.errors import PrivacyError
from fedpeft.runstore import write_atomic
from fedpeft_clients.governance.data_check import columns_of
from fedpeft_clients.governance.organisation import DataSet, Organisation

LEAST = 24
"""Least characters of a text that identifies a record by itself; labels and short answers do not."""
MOST = 10
"""Records that may share a text before it counts as a template, which identifies none."""
HASH_BYTES = 8
KEY_BYTES = 32

Hashes = NDArray[np.uint64]
"""Of records, shape ``(records, 3)``: whole, prompt, completion; 0 for a text that identifies none."""

_GAP = re.compile(r"\W+")


@dataclass(frozen=True)
class Overlap:
    """Records of a data set that another privacy-budget id covers too.

    Attributes:
        lineage: the other.
        records: how many of the data set's.
        share: the larger of the share of its records, and of the other's.
    """

    lineage: str
    records: int
    share: float

    def __str__(self) -> str:
        return (
            f"{self.records} of its records are under privacy-budget id {self.lineage!r} too "
            f"({self.share:.1%} in common)"
        )


@dataclass(frozen=True)
class _Known:
    """What is known of a privacy-budget id: its records, and the state of the files that they are from."""

    rows: Hashes
    stamps: dict[str, list[int]]


def admit(organisation: Organisation, dataset: DataSet, most: float) -> list[Overlap]:
    """Compare a data set with those of other budgets, and store its hashes; unchanged files are not read.

    Args:
        organisation: whose data sets are compared.
        dataset: registered or about to be.
        most: the share in common that is allowed; 1 allows everything.

    Returns:
        What it has in common with other privacy-budget ids, the largest share first.

    Raises:
        PrivacyError: more than is allowed is in common; nothing is stored then.
        DataError: a data set cannot be read.
    """
    for other in organisation.datasets().values():
        if other.lineage != dataset.lineage and _known(organisation, other.lineage) is None:
            _remember(organisation, other, _stamp(Path(other.file)), _rows(organisation, other))
    known, stamp = _known(organisation, dataset.lineage), _stamp(Path(dataset.file))
    fresh = known is None or known.stamps.get(dataset.file) != stamp
    rows = _rows(organisation, dataset) if known is None or fresh else known.rows
    overlaps = sorted(_overlaps(organisation, dataset.lineage, rows), key=lambda overlap: -overlap.share)
    if overlaps and overlaps[0].share > most:
        raise PrivacyError(
            f"data set {dataset.file}: {overlaps[0]}, allowed are {most:.1%} (privacy.max_overlap): a second "
            f"privacy-budget id would spend the same records twice; use --budget-id {overlaps[0].lineage} or "
            "take them out"
        )
    if fresh:
        _remember(organisation, dataset, stamp, rows)
    return overlaps


def changed(organisation: Organisation, dataset: DataSet) -> bool:
    """Whether the file of a data set is not as it was when its records were last compared and remembered."""
    path, stamp = _file(organisation, dataset.lineage), _stamp(Path(dataset.file))
    if not path.exists():
        return True
    with _opened(path) as (_, facts):
        return facts["stamps"].get(dataset.file) != stamp


def hashes(records: Iterable[Record], key: bytes) -> Hashes:
    """The hashes of records, one row for each that is different.

    Args:
        records: of any number.
        key: of the organisation, 32 bytes.
    """
    parts = [b"".join(_digests(record, key)) for record in records]
    rows = np.frombuffer(b"".join(parts), "<u8").astype(np.uint64).reshape(-1, 3)
    _, first = np.unique(rows[:, 0], return_index=True)
    rows = rows[np.sort(first)]
    texts = rows[:, 1:]
    known, counts = np.unique(texts, return_counts=True)
    templates = known[counts > MOST]
    texts[np.isin(texts, templates)] = 0
    return rows


def share(first: Hashes, second: Hashes) -> tuple[int, float]:
    """Records of the first that the second holds too, and the share in common."""
    if not len(first) or not len(second):
        return 0, 0.0
    common = [_in_common(left, right) for left, right in ((first, second), (second, first))]
    return common[0], max(common[0] / len(first), common[1] / len(second))


def _in_common(rows: Hashes, by: Hashes) -> int:
    return int(np.any(np.isin(rows, by[by != 0]), axis=1).sum())


def _digests(record: Record, key: bytes) -> Iterator[bytes]:
    prompt, completion = _normal(record.prompt), _normal(record.completion)
    whole = f"{prompt}\0{completion}" if prompt or completion else f"{record.prompt}\0\0{record.completion}"
    yield _digest(whole, key)
    for text in (prompt, completion):
        yield _digest(text, key) if len(text) >= LEAST else bytes(HASH_BYTES)


def _normal(text: str) -> str:
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _GAP.sub(" ", plain.casefold()).strip()


def _digest(text: str, key: bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=HASH_BYTES, key=key).digest()


def _overlaps(organisation: Organisation, lineage: str, rows: Hashes) -> Iterator[Overlap]:
    for path in sorted(organisation.records.glob("*.npz")):
        other, known = _read(path)
        if other == lineage:
            continue
        records, part = share(rows, known.rows)
        if records:
            yield Overlap(other, records, part)


def _rows(organisation: Organisation, dataset: DataSet) -> Hashes:
    return hashes(_records(dataset), _key(organisation))


def _records(dataset: DataSet) -> Sequence[Record]:
    return read_records(Path(dataset.file), columns_of(dataset.columns))


def _key(organisation: Organisation) -> bytes:
    """The organisation's key for records; made when first needed, readable by the owner only."""
    path = organisation.path / "records.key"
    if not path.exists():
        if any(organisation.records.glob("*.npz")):
            raise PrivacyError(f"{path} is missing, without which no record is known again; restore it")
        write_atomic(path, os.urandom(KEY_BYTES))
    return path.read_bytes()


def _file(organisation: Organisation, lineage: str) -> Path:
    return organisation.records / f"{hashlib.sha256(lineage.encode()).hexdigest()[:32]}.npz"


def _known(organisation: Organisation, lineage: str) -> _Known | None:
    path = _file(organisation, lineage)
    return _read(path)[1] if path.exists() else None


def _read(path: Path) -> tuple[str, _Known]:
    """A privacy-budget id and what is known of it.

    Raises:
        PrivacyError: the file is damaged.
    """
    with _opened(path) as (archive, facts):
        rows = archive["rows"]
        if rows.dtype != np.uint64 or rows.ndim != 2 or rows.shape[1] != 3:
            raise ValueError("shape")
        return facts["lineage"], _Known(rows, facts["stamps"])


@contextmanager
def _opened(path: Path) -> Generator[tuple[Mapping[str, NDArray[Any]], dict[str, Any]]]:
    """The arrays of the file of a privacy-budget id, each read when it is asked for, and its facts.

    Raises:
        PrivacyError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive, json.loads(archive["facts"].tobytes())
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise PrivacyError(
            f"{path} is damaged ({type(error).__name__}): restore it, or remove it and add the data set again"
        ) from None


def _remember(organisation: Organisation, dataset: DataSet, stamp: list[int], rows: Hashes) -> None:
    """Add records of a file, as it was at ``stamp``, to those of its budget; none is ever removed."""
    known = _known(organisation, dataset.lineage)
    if known is not None:
        rows = np.concatenate([known.rows, rows[~np.isin(rows[:, 0], known.rows[:, 0])]])
    stamps = {**(known.stamps if known else {}), dataset.file: stamp}
    facts = json.dumps({"lineage": dataset.lineage, "stamps": stamps}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, rows=rows, facts=np.frombuffer(facts, np.uint8))
    organisation.records.mkdir(mode=0o700, exist_ok=True)
    write_atomic(_file(organisation, dataset.lineage), buffer.getvalue())


def _stamp(path: Path) -> list[int]:
    """What changes when a file, or a file of a folder, is written."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    facts = [file.stat() for file in files if file.exists()]
    return [value for stat in facts for value in (stat.st_mtime_ns, stat.st_size, stat.st_ino)]
