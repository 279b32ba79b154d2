"""The everyday vocabulary of the embedded data: domains, topics, and the words that surround them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Topic:
    """One thing people ask about: its subject word, how it is put, and what is done about it."""

    name: str
    issues: tuple[str, ...]
    actions: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """A kind of organisation with its own topics."""

    name: str
    subject: str
    role: str
    actors: tuple[str, ...]
    topics: tuple[Topic, ...]


def read_text(name: str) -> str:
    """Return the file `texts/<name>` of this package."""
    return (resources.files("fedpeft_simulations.embedded") / "texts" / name).read_text(encoding="utf-8")


@cache
def read_table(name: str) -> dict[str, Any]:
    """Return the table `texts/<name>.toml` of this package."""
    return tomllib.loads(read_text(f"{name}.toml"))


@cache
def domains() -> tuple[Domain, ...]:
    """Return the domains in their fixed order; organisation i works in domain i modulo their number."""
    return tuple(
        Domain(
            table["name"],
            table["subject"],
            table["role"],
            tuple(table["actors"]),
            tuple(
                Topic(topic["name"], tuple(topic["issues"]), tuple(topic["actions"]))
                for topic in table["topic"]
            ),
        )
        for table in read_table("vocabulary")["domain"]
    )


@cache
def phrases_of_time() -> tuple[str, ...]:
    """Return the phrases that say since when something goes on."""
    return tuple(read_table("vocabulary")["when"])


@cache
def roads() -> tuple[str, ...]:
    """Return the words that end the name of a road."""
    return tuple(read_table("vocabulary")["roads"])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def words(text: str) -> set[str]:
    """Return the lower-case words of a text; letters only."""
    return set(re.findall(r"[a-z]+", text.lower()))


@cache
def common_words() -> frozenset[str]:
    """Return every word of every template and phrase, public or private; no name may be one of them."""
    tables = ("vocabulary", "public", "houses")
    return frozenset(entry for name in tables for text in _strings(read_table(name)) for entry in words(text))
