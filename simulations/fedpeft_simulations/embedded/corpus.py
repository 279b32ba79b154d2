"""Public text that the embedded base is trained on: articles, letters, and texts with a named subject.

It shares the everyday vocabulary with the organisations' notes. It knows no house style, no queue policy and
nobody whose data are in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedpeft_simulations.embedded.people import make_person, source
from fedpeft_simulations.embedded.vocabulary import Domain, Topic, domains, phrases_of_time, read_table

if TYPE_CHECKING:
    from faker import Faker

_CLOSING_SHARE = 0.8
_ASIDE_SHARE = 0.4
_DOMAIN_FIELD_SHARE = 0.15


@dataclass(frozen=True)
class Document:
    """One public text; `answer` is the word that names the subject of `text`, or empty."""

    text: str
    answer: str = ""

    @property
    def whole(self) -> str:
        """Text and answer as the base reads them."""
        return f"{self.text} {self.answer}" if self.answer else self.text


def _choose(fake: Faker, kind: str) -> str:
    return fake.random.choice(read_table("public")[kind])


def _pick_topic(fake: Faker) -> tuple[Domain, Topic]:
    domain = fake.random.choice(domains())
    return domain, fake.random.choice(domain.topics)


def _middle(fake: Faker, domain: Domain, topic: Topic, kind: str = "middle") -> str:
    actor, other = fake.random.sample(domain.actors, 2)
    action, action2 = fake.random.sample(topic.actions, 2)
    text = _choose(fake, kind).format(
        actor=actor,
        other=other,
        action=action,
        action2=action2,
        modal=_choose(fake, "modal"),
        why=_choose(fake, "why"),
        issue=fake.random.choice(topic.issues),
    )
    return text[0].upper() + text[1:]


def _closing(fake: Faker) -> list[str]:
    return [_choose(fake, "closing")] if fake.random.random() < _CLOSING_SHARE else []


def _article(fake: Faker) -> Document:
    domain, topic = _pick_topic(fake)
    opening = _choose(fake, "opening").format(issue=fake.random.choice(topic.issues))
    middles = [_middle(fake, domain, topic) for _ in range(fake.random.randint(1, 2))]
    return Document(" ".join([opening, *middles, *_closing(fake)]))


def _reader_letter(fake: Faker) -> Document:
    _, topic = _pick_topic(fake)
    person = make_person(fake, "public").fields
    issue, when = fake.random.choice(topic.issues), fake.random.choice(phrases_of_time())
    opening = _choose(fake, "reader").format(issue=issue, when=when, **person)
    return Document(" ".join([opening, *_closing(fake), _choose(fake, "reach").format(**person)]))


def _contact(fake: Faker) -> Document:
    return Document(_choose(fake, "contact").format(**make_person(fake, "public").fields))


def _advice(fake: Faker) -> Document:
    return Document(_middle(fake, *_pick_topic(fake), kind="advice"))


def labelled(fake: Faker) -> Document:
    """Return a text that ends in a field such as `Subject:`, with the word that belongs there."""
    domain, topic = _pick_topic(fake)
    by_domain = fake.random.random() < _DOMAIN_FIELD_SHARE
    has_aside = fake.random.random() < _ASIDE_SHARE
    other = fake.random.choice(_pick_topic(fake)[1].issues)
    text = _choose(fake, "labelled").format(
        issue=fake.random.choice(topic.issues),
        when=fake.random.choice(phrases_of_time()),
        aside=_choose(fake, "aside").format(issue=other) if has_aside else "",
        field=_choose(fake, "domain_fields" if by_domain else "topic_fields"),
        **make_person(fake, "public").fields,
    )
    return Document(text.strip(), domain.subject if by_domain else topic.name)


_KINDS: tuple[tuple[Callable[[Faker], Document], float], ...] = (
    (_article, 0.15),
    (_reader_letter, 0.15),
    (_contact, 0.05),
    (_advice, 0.05),
    (labelled, 0.60),
)


def public_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield `count` public documents; the same seed yields the same documents on every machine."""
    fake = source(seed, "public", "embedded-corpus")
    makers, weights = [kind for kind, _ in _KINDS], [weight for _, weight in _KINDS]
    for maker in fake.random.choices(makers, weights, k=count):
        yield maker(fake)
