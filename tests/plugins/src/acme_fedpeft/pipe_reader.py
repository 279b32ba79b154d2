"""A reader: one record a line, its columns between bars, their names in the first line."""

from fedpeft.data.readers import Reader
from fedpeft.errors import DataError


def rows(path):
    """The place and the columns of each line."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    names = header.split("|")
    for number, line in enumerate(lines, 2):
        cells = line.split("|")
        place = f"line {number}"
        wrong = DataError(f"{path} {place}: {len(cells)} columns, the first line names {len(names)}")
        yield place, dict(zip(names, cells, strict=True)) if len(cells) == len(names) else wrong


PIPES = Reader(rows, suffixes=(".psv",))
