"""Who takes part in a deployed run: enrolled nodes that have read the run's terms and agreed to them."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from fedpeft import flower
from fedpeft.config import Config, canonical
from fedpeft.errors import FederationError
from fedpeft.protocol.encoding import pack, unpack
from fedpeft.protocol.messages import PROTOCOL, TERMS, RunProposal, Terms, TermsReply
from fedpeft.runstore import RunStore
from fedpeft.trust import Signer
from fedpeft_server.rounds.ask_nodes import Question, ask, cause_of
from fedpeft_server.rounds.secure_progress import fix_roster

AGAIN_SECONDS = 5.0
"""A node that waits for its operator is asked again after this time, one that gives no answer after a while
that doubles each time."""
LONGEST_SECONDS = 60.0
UPGRADES = {
    "oldnode": "speaks only older protocols than this coordinator: upgrade that node",
    "oldcoordinator": "speaks only newer protocols than this coordinator: upgrade this coordinator",
}
"""What it means that a node refuses the protocol; it may be upgraded while the run waits."""
_RULE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class EnrolledNode:
    """A node that the coordinator's operator admitted.

    Attributes:
        name: the organisation's.
        transport: public key under which the network knows the node, an OpenSSH line.
        signing: Ed25519 public key of its envelopes, 32 bytes.
    """

    name: str
    transport: bytes
    signing: bytes


@dataclass(frozen=True)
class Enrolled:
    """The federation of a deployed run.

    Attributes:
        keys: reads the nodes by name that are enrolled now; whoever was revoked is not among them.
        signer: the coordinator's key.
    """

    keys: Callable[[], Mapping[str, EnrolledNode]]
    signer: Signer


@dataclass(frozen=True)
class _Verdict:
    """What an answer comes to.

    Attributes:
        cause: in plain words; empty if the node agreed.
        again: seconds until it is asked again; None: a while that doubles each time.
    """

    cause: str
    again: float | None = None


@dataclass
class TermsRound:
    """Asks nodes to agree to a run before anything else of it is said to them.

    One object lives as long as one Flower run: a node that refused is asked again in the next one only.

    Attributes:
        enrolled: the federation's nodes and key.
        config: the resolved config, which the terms hold whole.
        run: the run directory.
        run_id: 16 bytes.
        agreed: who a node is, by Flower's id, for all that agreed.
        missing: why the other enrolled nodes do not take part, by name.
    """

    enrolled: Enrolled
    config: Config
    run: Path
    run_id: bytes
    agreed: dict[int, EnrolledNode] = field(default_factory=dict[int, EnrolledNode])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    _verdicts: dict[int, _Verdict] = field(default_factory=dict[int, _Verdict])
    _due: dict[int, float] = field(default_factory=dict[int, float])
    _pauses: dict[int, float] = field(default_factory=dict[int, float])

    def refresh(self, grid: Grid, deadline: float, stop: threading.Event) -> set[int]:
        """Ask the nodes whose answer is due; those online that agreed and are still enrolled.

        Raises:
            FederationError: the run was stopped; never because of a node.
        """
        enrolled = self.enrolled.keys()
        here = _identified(enrolled, flower.public_keys(grid))
        self.missing = dict.fromkeys(enrolled, "not online")
        if (roster := self._roster(enrolled)) is None:
            self.missing = dict.fromkeys(enrolled, self._wrong_number(enrolled))
            return set()
        here = self._within(roster, here)
        self.agreed = {node: who for node, who in self.agreed.items() if here.get(node) == who}
        due = {node: who for node, who in here.items() if self._is_due(node)}
        if due:
            self._ask(grid, Question(TERMS, "terms", deadline, stop), due, roster)
        self.missing |= {who.name: self._verdicts[node].cause for node, who in here.items()}
        for who in self.agreed.values():
            del self.missing[who.name]
        return set(self.agreed)

    @property
    def refusals(self) -> int:
        """How many nodes have refused for as long as this Flower run lasts."""
        return sum(verdict.again == math.inf for verdict in self._verdicts.values())

    def objection(self, node: int, name: str, key: bytes) -> str | None:
        """Why a node that agreed is not who it says it is; None if it is."""
        who = self.agreed[node]
        if name != who.name:
            return f"its key is enrolled under the name {who.name!r}"
        return None if key == who.signing else "its signing key is not the enrolled one"

    def _is_due(self, node: int) -> bool:
        return node not in self.agreed and self._due.get(node, 0.0) <= time.monotonic()

    def _within(self, roster: Mapping[str, bytes], here: dict[int, EnrolledNode]) -> dict[int, EnrolledNode]:
        """Without the nodes that a secure sum cannot take in any more."""
        if not self.config.exchange.secure.enabled:
            return here
        known = {node: who for node, who in here.items() if roster.get(who.name) == who.signing}
        strangers = [who.name for node, who in here.items() if node not in known]
        self.missing |= dict.fromkeys(
            strangers, "enrolled after the roster of the run's secure sum was fixed"
        )
        return known

    def _ask(
        self, grid: Grid, question: Question, asked: Mapping[int, EnrolledNode], roster: Mapping[str, bytes]
    ) -> None:
        facts = Terms(PROTOCOL, self.run_id, self.enrolled.signer.public)
        content = pack(facts, self._terms(roster).encode())
        replies = ask(grid, question, dict.fromkeys(asked, content))
        for node, who in asked.items():
            verdict = self._verdicts[node] = _verdict(replies.get(node), who.name)
            if verdict.cause:
                self._due[node] = time.monotonic() + self._pause(node, verdict)
            else:  # if it leaves and comes back it is asked at once
                self.agreed[node] = who
                self._due.pop(node, None)
                self._pauses.pop(node, None)

    def _pause(self, node: int, verdict: _Verdict) -> float:
        if verdict.again is not None:
            return verdict.again
        pause = self._pauses.get(node, AGAIN_SECONDS)
        self._pauses[node] = min(2 * pause, LONGEST_SECONDS)
        return pause

    def _terms(self, roster: Mapping[str, bytes]) -> RunProposal:
        """The run as it is announced, signed."""
        terms = RunProposal(canonical(self.config), _labels(self.run), roster)
        return replace(terms, signature=self.enrolled.signer.sign(terms.message(self.run_id)))

    def _roster(self, enrolled: Mapping[str, EnrolledNode]) -> dict[str, bytes] | None:
        """The keys of all nodes that ever sum together in this run, fixed at its first terms."""
        if not self.config.exchange.secure.enabled:
            return {}
        keys = {name: who.signing for name, who in enrolled.items()}
        return fix_roster(self.run, keys, self.config.federation.nodes)

    def _wrong_number(self, enrolled: Mapping[str, EnrolledNode]) -> str:
        nodes = self.config.federation.nodes
        if len(enrolled) < nodes:
            return f"{len(enrolled)} of the {nodes} nodes of the secure sum are enrolled"
        return (
            f"{len(enrolled)} nodes are enrolled, the run's secure sum is of {nodes}: revoke some, or submit "
            f"it with federation.nodes = {len(enrolled)}"
        )


def _verdict(message: Message | None, name: str) -> _Verdict:
    """What a node of an enrolled name says to the terms; nothing that it writes is believed or repeated."""
    if message is None:
        return _Verdict("gives no answer to the run's terms")
    if message.has_error():
        return _Verdict(f"cannot answer the run's terms: {cause_of(message)}")
    try:
        reply, _ = unpack(message, TermsReply, 0)
    except FederationError as error:
        return _Verdict(f"cannot answer the run's terms: {error}")
    if reply.name != name:
        return _Verdict("answers the run's terms under another name than the enrolled one")
    if reply.answer == "agreed":
        return _Verdict("")
    rule = reply.rule if _RULE.fullmatch(reply.rule) else "unnamed"
    if reply.answer == "waiting" and not reply.rule:
        return _Verdict("waits for its operator to approve the run", AGAIN_SECONDS)
    if reply.answer == "waiting":
        return _Verdict(f"waits by its policy, rule {rule}", AGAIN_SECONDS)
    if reply.answer == "refused" and rule in UPGRADES:
        return _Verdict(UPGRADES[rule], LONGEST_SECONDS)
    if reply.answer == "refused":
        return _Verdict(f"refused by its policy, rule {rule}", math.inf)
    return _Verdict("gives an unknown answer to the run's terms", math.inf)


def _identified(enrolled: Mapping[str, EnrolledNode], lines: Mapping[int, bytes]) -> dict[int, EnrolledNode]:
    """The enrolled ones of the nodes that are online, by Flower's id."""
    known = {_key(who.transport): who for who in enrolled.values()}
    nodes = {node: known.get(_key(line)) for node, line in sorted(lines.items())}
    return {node: who for node, who in nodes.items() if who is not None}


def _key(line: bytes) -> bytes:
    """An OpenSSH public line without its comment."""
    return b" ".join(line.split()[:2])


def _labels(run: Path) -> tuple[str, ...]:
    path = RunStore(run).labels
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ()
