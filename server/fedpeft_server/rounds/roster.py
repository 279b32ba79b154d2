"""Who takes part: nodes greeted, compared with what was agreed, and ordered by name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedpeft.cohort import draw
from fedpeft.config.models import FederationConfig
from fedpeft.errors import FederationError
from fedpeft.privacy.csprng import Randomness, words
from fedpeft.privacy.plan_builder import period
from fedpeft.privacy.sampling import poisson
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import HELLO, PROTOCOL, Hello, HelloReply
from fedpeft_server.rounds.ask_nodes import Question, ask
from fedpeft_server.rounds.run_terms import TermsRound

GREETINGS = 3
FORGIVEN_SECONDS = 30.0
"""In a deployed run, nodes that could not be greeted are greeted anew after this time."""


@dataclass(frozen=True)
class Agreed:
    """What the coordinator computed itself and every node must have computed too.

    Attributes:
        run: 16 bytes derived from the config.
        base: content hash of the base, hexadecimal.
        layout: digest of the tensors that a node of a name exchanges.
        state: digest of the starting state, 32 bytes.
        key: the coordinator's public key, 32 bytes.
    """

    run: bytes
    base: str
    layout: Callable[[str], bytes]
    state: bytes
    key: bytes


@dataclass(frozen=True)
class Member:
    """A node that agreed: where it is now, its key, its rank and the rounds whose state it holds."""

    name: str
    node: int
    key: bytes
    rank: int
    versions: frozenset[int]


@dataclass
class Roster:
    """The members by name; nodes may come, leave and come back under another Flower id.

    A name belongs to the key that first used it in this run, in a deployed one to the key that is enrolled
    under it: ``keys``, in order of enrolment, is part of every checkpoint.

    Attributes:
        terms: of a deployed run, in which only nodes that agreed to them are greeted.
    """

    agreed: Agreed
    keys: dict[str, bytes] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    terms: TermsRound | None = None
    _greeted: dict[int, int] = field(default_factory=dict)
    _forgiven: float = field(default_factory=time.monotonic)

    @property
    def missing(self) -> dict[str, str]:
        """Why enrolled nodes of a deployed run are not members, by name."""
        if self.terms is None:
            return {}
        agreed = sorted(who.name for who in self.terms.agreed.values())
        mute = {name: self.refused.get(name, "cannot be greeted") for name in agreed}
        return {
            name: cause for name, cause in {**mute, **self.terms.missing}.items() if name not in self.members
        }

    def open_seats(self, nodes: int) -> int:
        """How many of some nodes may still come: those that neither are members nor refused for good."""
        refusals = self.terms.refusals if self.terms is not None else 0
        return max(0, nodes - len(self.members) - refusals)

    def refresh(self, grid: Grid, deadline: float, stop: threading.Event) -> None:
        """Greet nodes that are new; forget those that left. Never raises because of a node.

        A node that gives no answer is greeted again in the next rounds, three times in all. In a deployed run
        nodes agree to the terms first, and those that fail are greeted again as long as the run lasts.
        """
        online = self._present(grid, deadline, stop)
        stays = {name: member for name, member in self.members.items() if member.node in online}
        self.members = {
            name: member for name, member in stays.items() if self.terms is None or not self._stranger(member)
        }
        known = online - {member.node for name, member in stays.items() if name not in self.members}
        self._greeted = {node: times for node, times in self._greeted.items() if node in known}
        new = sorted(node for node in online if self._greeted.get(node, 0) < GREETINGS)
        if not new:
            return
        hello = pack(Hello(PROTOCOL, self.agreed.run, self.agreed.key))
        replies = ask(grid, Question(HELLO, "hello", deadline, stop), {node: hello for node in new})
        for node in new:
            self._greeted[node] = GREETINGS if node in replies else self._greeted.get(node, 0) + 1
        for member, cause in _check(replies, self.agreed):
            self._admit(member, cause)

    def _present(self, grid: Grid, deadline: float, stop: threading.Event) -> set[int]:
        """The nodes that may be greeted."""
        if self.terms is None:
            return set(grid.get_node_ids())
        if time.monotonic() > self._forgiven + FORGIVEN_SECONDS:
            members = {member.node for member in self.members.values()}
            self._greeted = {node: times for node, times in self._greeted.items() if node in members}
            self._forgiven = time.monotonic()
        return self.terms.refresh(grid, deadline, stop)

    def _admit(self, member: Member, cause: str | None) -> None:
        if cause is None:
            cause = self._stranger(member)
        if cause is None and member.name in self.members:
            cause = "this name is already present"
        if cause is None:
            self.members[member.name] = member
            self.keys[member.name] = member.key
            self.refused.pop(member.name, None)
        elif (name := self._name(member)) not in self.members:
            self.refused[name] = cause

    def _stranger(self, member: Member) -> str | None:
        """Why a node may not use its name; None if it may."""
        if self.terms is not None:
            return self.terms.objection(member.node, member.name, member.key)
        known = self.keys.get(member.name, member.key) == member.key
        return None if known else "this name belongs to another key"

    def _name(self, member: Member) -> str:
        """Under which name a refusal is logged: the enrolled one, or what the node calls itself."""
        if self.terms is not None:
            return self.terms.agreed[member.node].name
        return member.name or f"node-{member.node}"

    def settle(self, asked: Iterable[str], valid: Iterable[str], round: int) -> None:
        """Record who holds a round's state now; of the others nothing is assumed."""
        answered = set(valid)
        for name in asked:
            versions = frozenset({round}) if name in answered else frozenset[int]()
            self.members[name] = replace(self.members[name], versions=versions)


def sample(
    names: Iterable[str], federation: FederationConfig, seed: int, round: int, source: Randomness = words
) -> list[str]:
    """The nodes asked in a round, in order of name.

    * seeded: a share of all, at least one, drawn from the seed: known to all who know the seed.
    * poisson: each by its own secret coin from the operating system's entropy; maybe none, and another draw
      each time that a round is repeated.
    * cyclic: in turns; a node is asked every `period` rounds, however many come later.

    Args:
        names: all enrolled nodes in order of enrolment, which never changes during a run.
        federation: selection and participation.
        seed: of the seeded draw.
        round: 1-based.
        source: of the secret coins.
    """
    enrolled = list(names)
    if federation.selection == "poisson":
        drawn = poisson(len(enrolled), federation.participation, source)
        return sorted(enrolled[index] for index in drawn)
    if federation.selection == "cyclic":
        turns = period(federation.participation)
        return sorted(name for index, name in enumerate(enrolled) if index % turns == (round - 1) % turns)
    return draw(enrolled, federation.participation, seed, round)


def _check(replies: Mapping[int, Message], agreed: Agreed) -> list[tuple[Member, str | None]]:
    judged: list[tuple[Member, str | None]] = []
    for node, message in sorted(replies.items()):
        try:
            reply, _ = unpack(message, HelloReply, 0)
        except FederationError as error:
            judged.append((Member("", node, b"", 0, frozenset()), str(error)))
        else:
            member = Member(reply.name, node, reply.key, reply.rank, frozenset(reply.versions))
            judged.append((member, _disagreement(reply, agreed)))
    return sorted(judged, key=lambda pair: (pair[0].name, pair[0].node))


def _disagreement(reply: HelloReply, agreed: Agreed) -> str | None:
    """The first thing a node has another idea of, in words that need no log."""
    if reply.run != agreed.run:
        return "its agreed config differs from this run's config"
    if reply.base != agreed.base:
        return f"its base has hash {reply.base[:16]}, this run's base has {agreed.base[:16]}"
    if reply.layout != agreed.layout(reply.name):
        return "its adapter layout differs"
    if reply.state != agreed.state:
        return "its starting state differs"
    return None if len(reply.key) == 32 else "its public key is not 32 bytes"
