"""Organisations with notes that hold personal data: own topics, a house style, and a desk for each note."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedpeft.data import Record
from fedpeft.errors import ConfigError
from fedpeft_simulations.embedded.people import Person, make_person, source
from fedpeft_simulations.embedded.vocabulary import Topic, domains, phrases_of_time, read_table

if TYPE_CHECKING:
    from faker import Faker

Split = Literal["train", "validation", "test"]

_HELD_OUT_SHARE = 0.2
_HELD_OUT_LEAST = 16
_PERSONAL = ("name", "phone", "email", "id", "dob", "address")


@dataclass(frozen=True)
class Note:
    """A record together with what it is about and whose personal data it holds."""

    record: Record
    topic: str
    person: Person

    @property
    def secrets(self) -> tuple[str, ...]:
        """The personal data that occur in the prompt."""
        fields = self.person.fields
        return tuple(fields[key] for key in _PERSONAL if fields[key] in self.record.prompt)


@dataclass(frozen=True)
class Organisation:
    """One organisation's notes, split into parts that share no person."""

    name: str
    notes: Mapping[Split, tuple[Note, ...]]

    @property
    def train(self) -> list[Record]:
        """The records to train on."""
        return self._records("train")

    @property
    def validation(self) -> list[Record]:
        """The records to tune on."""
        return self._records("validation")

    @property
    def test(self) -> list[Record]:
        """The records that are only ever evaluated."""
        return self._records("test")

    def _records(self, split: Split) -> list[Record]:
        return [note.record for note in self.notes[split]]


@dataclass(frozen=True)
class House:
    """What marks every note of one organisation."""

    name: str
    role: str
    style: int


def _house(index: int) -> House:
    kinds = domains()
    domain, repeat = kinds[index % len(kinds)], index // len(kinds)
    name = domain.name.replace(" ", "-") + (f"-{repeat + 1}" if repeat else "")
    return House(name, domain.role, index + repeat)


def queues() -> tuple[str, ...]:
    """Return the desks that a note can go to, sorted."""
    return tuple(sorted(set(_policy().values())))


def _policy() -> dict[str, str]:
    return read_table("houses")["policy"]


def _aside(fake: Faker) -> str:
    aside: dict[str, Any] = read_table("houses")["aside"]
    if fake.random.random() >= aside["share"]:
        return ""
    topic = fake.random.choice([topic for domain in domains() for topic in domain.topics])
    return aside["text"].format(issue=fake.random.choice(topic.issues))


def _note(fake: Faker, house: House, topic: Topic) -> Note:
    styles = read_table("houses")["style"]
    person = make_person(fake, "private")
    prompt = styles[house.style % len(styles)]["text"].format(
        issue=fake.random.choice(topic.issues),
        when=fake.random.choice(phrases_of_time()),
        aside=_aside(fake),
        role=house.role,
        Role=house.role.capitalize(),
        **person.fields,
    )
    record = Record(prompt, f" {_policy()[topic.name]}", house.name, person=person.name)
    return Note(record, topic.name, person)


def _draw_topic(fake: Faker, home: int, mix: float) -> Topic:
    kinds = domains()
    away = fake.random.random() < mix
    domain = fake.random.choice(kinds[:home] + kinds[home + 1 :]) if away else kinds[home]
    return fake.random.choice(domain.topics)


def make_organisation(index: int, samples: int, seed: int, mix: float = 0.1) -> Organisation:
    """Return organisation `index` with `samples` training notes, and held-out notes of its own.

    Organisation i works in domain i modulo 4; a share `mix` of its notes is on topics of other domains. From
    the fifth on, organisations of a domain differ by seed and by house style. The same arguments give the
    same notes on every machine; the parts of an organisation are independent draws.

    Raises:
        ConfigError: an index below 0, no samples, or a mix outside 0..1.
    """
    if index < 0 or samples < 1 or not 0 <= mix <= 1:
        arguments = f"index {index}, samples {samples}, mix {mix}"
        raise ConfigError(
            f"embedded organisation: {arguments}; allowed are index >= 0, samples >= 1, 0 <= mix <= 1"
        )
    held_out = max(_HELD_OUT_LEAST, round(_HELD_OUT_SHARE * samples))
    sizes: dict[Split, int] = {"train": samples, "validation": held_out, "test": held_out}
    house, home = _house(index), index % len(domains())

    def draw(split: Split, count: int) -> tuple[Note, ...]:
        fake = source(seed, house.name, f"embedded-{split}")
        return tuple(_note(fake, house, _draw_topic(fake, home, mix)) for _ in range(count))

    return Organisation(house.name, {split: draw(split, count) for split, count in sizes.items()})


def global_notes(samples: int, seed: int) -> list[Note]:
    """Return `samples` notes over all topics in turn, in the style of each domain's first organisation."""
    if samples < 1:
        raise ConfigError(f"embedded global test: samples {samples}; allowed is at least 1")
    fake = source(seed, "global", "embedded-test")
    table = [(_house(home), topic) for home, domain in enumerate(domains()) for topic in domain.topics]
    return [_note(fake, *table[index % len(table)]) for index in range(samples)]


def global_test(samples: int, seed: int) -> list[Record]:
    """Return the records of `global_notes`: the test that all organisations share."""
    return [note.record for note in global_notes(samples, seed)]
