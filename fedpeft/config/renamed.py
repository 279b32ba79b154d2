"""Settings that were renamed: the old names work until version 0.3, in files, overrides and messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedpeft.errors import ConfigError

RENAMED = {
    "exchange.secure.least_nodes": "exchange.secure.min_nodes",
    "privacy.most_noise": "privacy.max_noise_to_signal",
    "run.arms": "run.baselines",
}
"""Old name: name since version 0.2."""


def current_name(key: str) -> str:
    """The name that a setting has now."""
    return RENAMED.get(key, key)


def with_current_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with every setting under its current name.

    Raises:
        ConfigError: a setting is there under both names.
    """
    return _moved(settings, RENAMED.items())


def with_old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The inverse, for the form of a config that is hashed and sent."""
    return _moved(settings, ((new, old) for old, new in RENAMED.items()))


def note(keys: Iterable[str]) -> str:
    """One line that names the old names among some settings; empty without any."""
    pairs = [f"{key} is now {RENAMED[key]}" for key in dict.fromkeys(keys) if key in RENAMED]
    return f"{', '.join(pairs)}; old names work until 0.3" if pairs else ""


def names_of(settings: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """All names of nested settings, as ``section.key``."""
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")


def _moved(settings: dict[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    for source, target in pairs:
        *tables, name = source.split(".")
        new_name = target.rpartition(".")[2]
        table: Any = settings
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or name not in table:
            continue
        if new_name in table:
            raise ConfigError(f"settings {source!r} and {target!r} are the same: leave out the former")
        renamed = {new_name if key == name else key: value for key, value in table.items()}
        settings = _replaced(settings, tables, renamed)
    return settings


def _replaced(settings: dict[str, Any], tables: list[str], table: dict[str, Any]) -> dict[str, Any]:
    """The settings with another table at that place; what was passed is not changed."""
    if not tables:
        return table
    return settings | {tables[0]: _replaced(settings[tables[0]], tables[1:], table)}
