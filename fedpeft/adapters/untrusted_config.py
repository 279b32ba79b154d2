"""What a stranger's ``adapter_config.json`` may ask of peft: names of modules, never expressions or code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fedpeft.errors import ConfigError

MOST_RANK = 2**16
MOST_PATTERNS = 4096
"""Of one setting; each is matched against each module."""
_LONGEST = 400
_MATCHED = re.compile(r"modules|pattern|parameters")
"""Settings whose strings peft matches as regular expressions, or may in another method."""
_CHARACTER = r"[\w\-/:.]"
_SAFE = re.compile(
    rf"\^?(?:{_CHARACTER}|\\\.|\\d\+?|\.\*|\((?:\?:)?{_CHARACTER}+(?:\|{_CHARACTER}+)*\))*\$?", re.ASCII
)
_CODE = ("megatron_config", "runtime_config")
_TARGETS = ("target_modules", "exclude_modules")
_NUMBERS = ("r", "lora_alpha", "lora_dropout", "num_virtual_tokens")
_OTHERS = "adapters"
"""Setting of X-LoRA: paths of other adapters, which peft would load too."""
_START = re.compile(r"init_(?:lora_)?weights")
_WORDS = ("gaussian", "orthogonal", "eva", "bat", "mini", "normal", "kaiming_uniform", "xavier_uniform")
_PLAIN_STARTS = (True, False, None, *_WORDS)
"""Starts that neither compute long nor change the base."""


def with_names(config: Mapping[str, Any], modules: Collection[str]) -> dict[str, Any]:
    """The configuration with an adapter's modules by name in place of an expression that is not matched.

    unsloth, ms-swift and LLaMA-Factory write expressions with look-ahead for bases that see; which modules
    those meant can be read off the tensors in the file.

    Args:
        config: a stranger's configuration.
        modules: full names of the base's modules that the file holds tensors of.
    """
    unsafe = [text for key in _TARGETS for text in _strings(config.get(key)) if not _is_plain(text)]
    if not (unsafe and modules):
        return dict(config)
    return {**config, "target_modules": sorted(modules), "exclude_modules": None}


def check_foreign(config: Mapping[str, Any], source: object) -> None:
    r"""Refuse a configuration that could keep the machine busy, change the base or have modules imported.

    peft matches the configuration's strings against every module's name as regular expressions, whose time
    can be exponential. Allowed are names, one ``.*``, two ``\d+`` and alternatives in one level of
    brackets: matching a name of length n takes at most about n squared steps.

    Raises:
        ConfigError: names the setting.
    """
    for key, value in config.items():
        if key in _CODE and value:
            raise ConfigError(f"{source}: {key} of adapter_config.json loads code; remove it")
        if key == _OTHERS and value:
            raise ConfigError(
                f"{source}: {key} of adapter_config.json names other adapters; give one of them"
            )
        if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{source}: {key} = {repr(value)[:60]} of adapter_config.json is no number")
        if _START.fullmatch(key) and value not in _PLAIN_STARTS:
            raise ConfigError(
                f"{source}: {key} = {str(value)[:60]!r} of adapter_config.json computes a start and changes "
                "the base; convert the adapter to plain LoRA where it was trained, then set it to true"
            )
        if _MATCHED.search(key):
            check_patterns(config, key, source)
        ranks = value.values() if isinstance(value, Mapping) and key == "rank_pattern" else [value]
        if key in ("r", "rank_pattern") and any(isinstance(r, int) and r > MOST_RANK for r in ranks):
            raise ConfigError(f"{source}: {key} of adapter_config.json exceeds {MOST_RANK}, the largest rank")


def check_patterns(config: Mapping[str, Any], key: str, source: object) -> None:
    """Refuse expressions of one setting that could keep the machine busy; see `check_foreign`.

    Raises:
        ConfigError: names the setting.
    """
    patterns = list(_strings(config.get(key)))
    if len(patterns) > MOST_PATTERNS:
        raise ConfigError(f"{source}: {key} has {len(patterns)} entries; at most {MOST_PATTERNS} are matched")
    for pattern in patterns:
        if not _is_plain(pattern):
            raise ConfigError(
                f"{source}: {key} of adapter_config.json holds the expression {pattern[:60]!r}; give a list "
                "of modules' names or their endings"
            )


def _is_plain(pattern: str) -> bool:
    simple = len(pattern) <= _LONGEST and _SAFE.fullmatch(pattern) is not None
    return simple and pattern.count("*") <= 1 and pattern.count("+") <= 2


def _strings(value: Any) -> Iterator[str]:
    """Every string in a setting, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        inner: Mapping[Any, Any] = value
        for key, part in inner.items():
            yield str(key)
            yield from _strings(part)
    elif isinstance(value, list):
        items: list[Any] = value
        for part in items:
            yield from _strings(part)
