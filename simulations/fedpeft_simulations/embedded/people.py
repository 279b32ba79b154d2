"""Invented people: their personal data come from a public or from a private pool, which share nothing.

A word is on one side only, whether it serves as first name, surname, street or part of an e-mail address:
its SHA-256 decides. Words that the templates use are on neither side. Phones and ids differ by their first
digits, e-mails by their domain, and dates of birth alternate; so no private value can occur in public text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Literal

from fedpeft import rng
from fedpeft.extras import needs
from fedpeft_simulations.embedded.vocabulary import common_words, roads

if TYPE_CHECKING:
    from faker import Faker

Side = Literal["public", "private"]
WHAT = "made-up text (the embedded data, canaries)"

_OLDEST, _YOUNGEST = date(1940, 1, 1).toordinal() // 2, date(2005, 12, 31).toordinal() // 2


@dataclass(frozen=True)
class Person:
    """Personal data of one invented person."""

    name: str
    first: str
    phone: str
    email: str
    id: str
    dob: str
    address: str

    @property
    def fields(self) -> dict[str, str]:
        """The data by field name, as templates use them."""
        return asdict(self)


@dataclass(frozen=True)
class Pool:
    """What the people of one side are made from; `#` stands for a digit."""

    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    phone: str
    id: str
    mail_domains: tuple[str, ...]


def _on_side(name: str, side: Side) -> bool:
    private = hashlib.sha256(name.lower().encode()).digest()[0] % 2 == 1
    plain = name.isascii() and name.isalpha() and len(name) > 2 and name.lower() not in common_words()
    return plain and private == (side == "private")


def _names(side: Side, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in set(names) if _on_side(name, side)))


@cache
def pool(side: Side) -> Pool:
    """Return the pool of one side; the two sides have no word, prefix or mail domain in common."""
    with needs("simulation", WHAT):
        from faker.providers.person.en_US import Provider as Names
    first, last = _names(side, Names.first_names), _names(side, Names.last_names)
    if side == "public":
        return Pool(first, last, "0190 ######", "2#######", ("example.org", "mail.example", "post.example"))
    return Pool(first, last, "0100 ######", "7#######", ("mail.test", "home.test", "family.test"))


def source(seed: int, node: str, purpose: str) -> Faker:
    """Return Faker with its own generator, seeded from the stream of (seed, node, purpose)."""
    with needs("simulation", WHAT):
        from faker import Faker
    fake = Faker("en_US")
    fake.seed_instance(int(rng.stream(seed, 0, node, purpose).integers(2**62)))
    return fake


def make_person(fake: Faker, side: Side) -> Person:
    """Return a person of one side, drawn from `fake`."""
    parts, draw = pool(side), fake.random.choice
    first, surname = draw(parts.first_names), draw(parts.surnames)
    born = date.fromordinal(2 * fake.random.randint(_OLDEST, _YOUNGEST) + (side == "private"))
    return Person(
        name=f"{first} {surname}",
        first=first,
        phone=fake.numerify(parts.phone),
        email=f"{first}.{surname}{fake.numerify('##')}@{draw(parts.mail_domains)}".lower(),
        id=fake.numerify(parts.id),
        dob=born.strftime("%d/%m/%Y"),
        address=f"{fake.random.randint(1, 199)} {draw(parts.surnames)} {draw(roads())}",
    )
