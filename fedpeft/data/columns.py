"""From the columns of a row to a record, by the settings of ``[data]``."""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from fedpeft.config.models import DataConfig
from fedpeft.config.template import COMPLETION, PROMPT, Template
from fedpeft.data.chats import read_chat
from fedpeft.data.records import FIELD, Notes, Record
from fedpeft.data.text_files import check_text
from fedpeft.errors import DataError

Columns = Mapping[str, Any]


def record_of(where: str, row: Columns, cfg: DataConfig, notes: Notes) -> Record:
    """The record of a row.

    Args:
        where: file and row, for errors.
        row: columns by name.
        cfg: which columns are what.
        notes: receives what was left out.

    Raises:
        DataError: a column is missing, stands twice or holds what is no text; names row and column.
    """
    group, person = _group(where, row, cfg), _person(where, row, cfg)
    if cfg.messages is not None:
        return _chat(where, row, cfg.messages, notes, group, person)
    template = Template.parse(cfg.template)
    texts = [_field(where, row, name, cfg) for name in template.fields]
    if not texts[-1].strip():
        name = _source(template.fields[-1], cfg)[0]
        raise DataError(f"{where}: {name!r} is empty; every record needs a completion")
    if template.is_plain:
        return Record(texts[0], texts[1], group, person=person, place=where)
    prompt = template.prompt_of(tuple(texts[:-1]))
    fields = tuple(zip(template.fields, texts[:-1], strict=False))
    return Record(prompt, texts[-1], group, person=person, fields=fields, place=where)


def _chat(
    where: str, row: Columns, column: str, notes: Notes, group: str | None, person: str | None
) -> Record:
    tools = row.get("tools")
    chat = read_chat(where, _column(where, row, column, "data.messages"), tools)
    if chat.dropped:
        notes.records["turns after the assistant's last are left out"] += 1
    prompt = "\n".join(text for _, text in chat.pairs[:-1])
    return Record(prompt, chat.pairs[-1][1], group, chat.pairs, person, chat.turns, place=where)


def _source(name: str, cfg: DataConfig) -> tuple[str, str]:
    """The column of a template's field, and the setting that names it."""
    roles = {PROMPT: (cfg.prompt, "data.prompt"), COMPLETION: (cfg.completion, "data.completion")}
    return roles.get(name, (name, "data.template"))


def _field(where: str, row: Columns, name: str, cfg: DataConfig) -> str:
    if FIELD + name in row:
        return _string(where, name, row[FIELD + name])
    column, setting = _source(name, cfg)
    return _string(where, column, _column(where, row, column, setting))


def _person(where: str, row: Columns, cfg: DataConfig) -> str | None:
    if cfg.person is None:
        return None
    return _string(where, cfg.person, _column(where, row, cfg.person, "data.person"))


def _group(where: str, row: Columns, cfg: DataConfig) -> str | None:
    if cfg.partition_column is None:
        group = row.get("group")
        return _string(where, "group", group) if isinstance(group, str) else None
    column = cfg.partition_column
    return _string(where, column, _column(where, row, column, "data.partition_column"))


def _column(where: str, row: Columns, name: str, setting: str) -> Any:
    if name in row:
        cell = row[name]
        if isinstance(cell, DataError):
            raise DataError(f"{where}: column {name!r} ({setting}) {cell}")
        return cell
    columns = [str(column).encode("ascii", "backslashreplace").decode() for column in row]
    near = difflib.get_close_matches(name, columns, n=3, cutoff=0.4) or columns[:8]
    raise DataError(
        f"{where}: no column {name!r} ({setting}); nearest: {', '.join(near) or 'none, the row is empty'}"
    )


def _string(where: str, name: str, value: Any) -> str:
    """A cell as text: as JSON writes truth values and numbers, dates as ISO 8601."""
    if isinstance(value, str):
        check_text(f"{where}: {name!r}", value)
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal)) or (isinstance(value, float) and math.isfinite(value)):
        return _number(where, name, value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise DataError(
        f"{where}: {name!r} is {_kind(value)}; it must be text, a number, a date or true or false"
    )


def _number(where: str, name: str, value: float | Decimal) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        pass
    raise DataError(f"{where}: {name!r} is a number of too many digits; write it as text")


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"empty ({'null' if value is None else 'NaN'})"
    return f"of type {type(value).__name__}"
