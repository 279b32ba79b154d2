"""Files that are not read: what they are, by ending or by first bytes, and what to do instead."""

from __future__ import annotations

from pathlib import Path

_SPREADSHEET = "a spreadsheet, which is not read: save its table as CSV, in UTF-8"
_ARCHIVE = "an archive, which is not read: unpack it and give the files"
_PICKLE = "a pickle, which may run code and is not read: write the records as JSON lines"
_DOCUMENT = "a document, which is not read: write its records as JSON lines"
_DATABASE = "a database, which is not read: export its table as CSV or Parquet"

_ENDINGS = {
    _SPREADSHEET: (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"),
    _ARCHIVE: (".zip", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".lz4", ".z", ".sz"),
    _PICKLE: (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npy", ".npz"),
    _DOCUMENT: (".docx", ".doc", ".odt", ".pdf", ".rtf", ".html", ".htm", ".xml"),
    _DATABASE: (".db", ".sqlite", ".sqlite3", ".duckdb", ".mdb", ".accdb", ".sas7bdat", ".sav", ".dta"),
}
_BY_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings}

_LFS = "a pointer of Git LFS in place of the file: fetch it (git lfs pull)"
_WEB_PAGE = "a web page, as a download that failed leaves one: get the file again"
_FIRST_BYTES = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet, which is not read: unpack it, or save its table as CSV",
    b"\xd0\xcf\x11\xe0": _SPREADSHEET,
    b"\x1f\x8b": "compressed with gzip: end its name with .gz",
    b"BZh": "compressed with bzip2: end its name with .bz2",
    b"\xfd7zXZ": "compressed with xz: end its name with .xz",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard: end its name with .zst",
    b"7z\xbc\xaf": _ARCHIVE,
    b"PAR1": "a Parquet file: end its name with .parquet",
    b"ARROW1": "an Arrow file: end its name with .arrow",
    b"SQLite format 3": _DATABASE,
    b"%PDF": _DOCUMENT,
    b"version https://git-lfs": _LFS,
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
}


def kind_by_ending(path: Path) -> str | None:
    """What a file of this name is, and what to do; None: of no ending that is known here."""
    return _BY_ENDING.get(path.suffix.lower())


def kind_by_content(start: bytes) -> str | None:
    """What a file that begins so is, and what to do; None: nothing that is known here."""
    lowered = start[:32].lstrip().lower()
    return next(
        (
            kind
            for magic, kind in _FIRST_BYTES.items()
            if start.startswith(magic) or (magic[:1] == b"<" and lowered.startswith(magic))
        ),
        None,
    )


def kind_of_file(file: Path) -> str | None:
    """What a file is by its first bytes, and what to do; None: nothing known here, or not readable."""
    try:
        with file.open("rb") as handle:
            return kind_by_content(handle.read(64))
    except OSError:
        return None
