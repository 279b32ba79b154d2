"""Which scenario a command's settings come from: one rule for all that take ``[SCENARIO] [--set …]``.

* A file, or one of the names ``embedded`` and ``defaults``: that, and ``--set`` over it.
* Nothing: the embedded scenario, because base and data are the embedded ones. If ``--set`` names another base
  or other data, its rates, sizes and comparison runs would fit neither: then the defaults.

A file leaves open what it does not name; there the defaults hold, never the embedded scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpeft.config.checks import check_new
from fedpeft.config.load import load_config, read_settings
from fedpeft.config.models import EMBEDDED, Config
from fedpeft.config.renamed import names_of, note

DEFAULTS = "defaults"
_BASE_OR_DATA = ("base.model", "data.source")
"""Settings that put other than the embedded base or data in place."""


@dataclass(frozen=True)
class Scenario:
    """Settings of a command and where they came from.

    Attributes:
        config: the settings.
        origin: one line for people, without its end: the scenario, why it was chosen, and what changed it.
    """

    config: Config
    origin: str


def embedded_scenario() -> Path:
    """The file of the embedded scenario."""
    return Path(__file__).parent / "embedded.toml"


def scenario_file(name: str) -> Path | None:
    """The file of a scenario that is named, or that is a file; None: the defaults, which need none."""
    return {EMBEDDED: embedded_scenario(), DEFAULTS: None}.get(name, Path(name))


def load_scenario(name: Path | str | None, overrides: Sequence[str] = ()) -> Scenario:
    """The settings that follow from a scenario argument and ``--set`` options.

    Args:
        name: a TOML file, ``embedded``, ``defaults``, or None for the rule of this module.
        overrides: ``section.key=value``, each over the scenario.

    Raises:
        ConfigError: as `load_config`.
    """
    path, origin = _chosen(None if name is None else str(name), overrides)
    changes = f"; --set changes {', '.join(_key(text) for text in overrides)}" if overrides else ""
    config, renamed = load_config(path, overrides), old_names(path, overrides)
    check_new(config)
    return Scenario(config, f"settings: {origin}{changes}{f'; {renamed}' if renamed else ''}")


def old_names(path: Path | None, overrides: Sequence[str]) -> str:
    """One line about settings under their old names, in a valid file or overrides; empty without any."""
    settings = [] if path is None else names_of(read_settings(path))
    return note([*settings, *map(_key, overrides)])


def _chosen(name: str | None, overrides: Sequence[str]) -> tuple[Path | None, str]:
    if name == DEFAULTS:
        return scenario_file(name), "the defaults"
    if name is not None and name != EMBEDDED:
        return scenario_file(name), f"{name}, and the defaults for what it leaves open"
    replaced = [_key(text) for text in overrides if _key(text) in _BASE_OR_DATA and _value(text) != EMBEDDED]
    if name is None and replaced:
        return None, f"the defaults, because {replaced[0]} is given"
    return scenario_file(EMBEDDED), "the embedded scenario"


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _value(override: str) -> str:
    return override.partition("=")[2].strip().strip("\"'")
