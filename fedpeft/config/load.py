"""From TOML files and ``--set`` options to one frozen `Config`, and back."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedpeft.config.checks import check
from fedpeft.config.hints import paths, section, unknown_setting
from fedpeft.config.models import Config
from fedpeft.config.profiles import PROFILES, default_profile
from fedpeft.config.renamed import current_name, with_current_names, with_old_names
from fedpeft.config.template import written_in_a_shell
from fedpeft.errors import ConfigError


def load_config(path: Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a scenario file and apply overrides, in that order over the defaults.

    A profile among the overrides is applied before the other overrides. Settings may have the names that they
    had before version 0.2.

    Args:
        path: a TOML file; None: the defaults alone.
        overrides: texts ``key.path=value``, or values by ``key.path``.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown (the nearest valid one is named),
            a value is out of range, or two settings contradict each other.
    """
    settings = with_current_names(read_settings(path)) if path else {}
    pairs = list(overrides.items() if isinstance(overrides, Mapping) else map(_pair, overrides))
    for name in (value for key, value in pairs if key == "exchange.profile"):
        for key, value in _profile(name).items():
            put_setting(settings, key, value)
    for key, value in pairs:
        _apply(settings, current_name(key), value)
    return build_config(settings)


def build_config(settings: dict[str, Any]) -> Config:
    """Validate nested settings into a `Config`; its profile fills in what they leave open.

    Raises:
        ConfigError: as `load_config`.
    """
    settings = with_current_names(settings)
    for key in _unknown_keys(settings, Config):
        raise ConfigError(unknown_setting(key))
    try:
        config = Config.model_validate(settings)
        chosen = "profile" in config.exchange.model_fields_set
        name = config.exchange.profile if chosen else default_profile(config)
        config = Config.model_validate(_filled(settings, {"exchange.profile": name, **_profile(name)}))
    except ValidationError as error:
        raise ConfigError(_validation_message(error)) from None
    check(config)
    return config


def dump_config(config: Config) -> str:
    """The resolved config as TOML; `load_config` of it gives the same config."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def config_hash(config: Config) -> str:
    """SHA-256 of the canonical JSON of a config, hexadecimal."""
    return hashlib.sha256(canonical(config)).hexdigest()


ADDED: tuple[tuple[str, str, Any], ...] = (
    ("data", "encoding", "utf-8"),
    ("data", "assistant_turns", "last"),
    ("adapter", "train_head", False),
    ("adapter", "experts", False),
    ("adapter", "trainable_tokens", []),
    ("adapter", "output_tokens", []),
    ("privacy", "loss_share", 0.0),
    ("privacy", "loss_cap", 10.0),
    ("federation", "stop_after", 0),
    ("privacy", "sampling", "person"),
    ("privacy", "noise", "gaussian"),
)
"""Settings that a later version added: section, name, and the value that means what was before."""


def canonical(config: Config) -> bytes:
    """The one JSON form of a config, by which parties name a run.

    A setting in `ADDED` that has its neutral value is left out, so that a version that does not know it
    finds the same run; with another value such a version refuses the run. Renamed settings have their old
    names here.
    """
    settings = with_old_names(config.model_dump(mode="json"))
    for table, name, neutral in ADDED:
        if settings[table][name] == neutral:
            del settings[table][name]
    return json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file as it names them, unchecked.

    Raises:
        ConfigError: the file is missing, cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no scenario file {str(path)!r}; give the path of a TOML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not valid TOML: it is not UTF-8 text; save it as such") from None
    except (ValueError, RecursionError) as error:  # also of numbers and tables that Python does not read
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _pair(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not all(key.strip().split(".")):
        raise ConfigError(f"--set needs key=value, for example run.seed=7; got {override!r}")
    return key.strip(), _value(current_name(key.strip()), text.strip())


def _apply(settings: dict[str, Any], key: str, value: Any) -> None:
    known = list(paths())
    if key not in known and not any(key.startswith(f"{name}.") for name in known):
        raise ConfigError(unknown_setting(key))
    put_setting(settings, key, value)


def put_setting(settings: dict[str, Any], key: str, value: Any) -> None:
    """Put the value of a setting into nested tables.

    Raises:
        ConfigError: the key goes through a value that is no table.
    """
    *parts, name = key.split(".")
    table = settings
    for part in parts:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key!r} is not a setting: {part!r} is a value, not a table")
    table[name] = value


def _profile(name: Any) -> Mapping[str, Any]:
    """The settings of a profile; none for a name that is none, which validation refuses."""
    return PROFILES[name].settings if name in PROFILES else {}


def _filled(settings: dict[str, Any], profile: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and those of the profile that they leave open."""
    result = copy.deepcopy(settings)
    for key, value in profile.items():
        *parts, last = key.split(".")
        table = result
        for part in parts:
            table = table.setdefault(part, {})
        table.setdefault(last, value)
    return result


def _value(key: str, text: str) -> Any:
    """The value that a text stands for: TOML, but the text itself where the setting takes only texts."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also of numbers and tables that Python does not read
        return written_in_a_shell(text) if key == "data.template" else text
    return value if isinstance(value, str) or not _takes_only_text(key) else text


def _takes_only_text(key: str) -> bool:
    """Whether all that a setting can be is a text, or nothing: ``12e4567`` is then no number."""
    model: type[BaseModel] = Config
    *sections, name = key.split(".")
    for table in sections:
        field = model.model_fields.get(table)
        inner = section(field.annotation) if field else None
        if inner is None:
            return False
        model = inner
    field = model.model_fields.get(name)
    return field is not None and set(typing.get_args(field.annotation) or (field.annotation,)) <= {
        str,
        type(None),
    }


def _unknown_keys(settings: dict[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        field = model.model_fields.get(name)
        if field is None:
            yield f"{prefix}{name}"
        elif (inner := section(field.annotation)) and isinstance(value, dict):
            yield from _unknown_keys(typing.cast(dict[str, Any], value), inner, f"{prefix}{name}.")


_WORDS = {
    "tuple_type": 'it must be a list, as ["a", "b"]',
    "dict_type": "it must be a table of names and values",
    "model_type": "it must be a table of settings",
    "model_attributes_type": "it must be a table of settings",
}
"""What is said in place of pydantic's words, by its kind of error."""
_NOT_OFFERED = {
    (
        "run.engine",
        "'opacus-ghost'",
    ): "ghost clipping takes norms in float32 from products of tokens, so that a "
    "record may pass uncut (decision 0079); set 'opacus', or 'loop', which needs the least memory"
}
"""Values that are expected here and left out for a reason, by setting."""
_LONGEST = 80
"""Characters of a value that an error repeats."""


def _validation_message(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    value = first["input"]
    written = value.isoformat() if isinstance(value, datetime.date | datetime.time) else repr(value)
    message = _NOT_OFFERED.get((path, written), message)
    if len(written) > _LONGEST:
        written = f"{written[:_LONGEST]}..."
    return f"setting {path!r} cannot be {written}: {message[:1].lower()}{message[1:]}{more}"
