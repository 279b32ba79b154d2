"""The gate that every reply passes: what leaves is checked, bared of text, and on the disk before it goes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Message

from fedpeft import flower
from fedpeft.exchange import OVERHEAD_BYTES
from fedpeft.privacy.ledger.entry_bodies import charged
from fedpeft.protocol.encoding import unpack
from fedpeft.protocol.messages import (
    HELLO,
    LARGEST_TERMS,
    SECURE,
    TERMS,
    TRAIN,
    HelloReply,
    SecureReply,
    Terms,
    TermsReply,
    TrainReply,
)
from fedpeft.runstore import read_json
from fedpeft_clients.governance.policy import PolicyError
from fedpeft_clients.governance.run_approval import CoordinatorLink
from fedpeft_clients.rounds.leak_check import verdict_on
from fedpeft_clients.rounds.node_context import NodeContext
from fedpeft_clients.rounds.run_home import Home, open_home

LARGEST_REPLY = 2**31 - 1 + OVERHEAD_BYTES
KINDS: dict[str, tuple[str, type[Any]]] = {
    TERMS: ("terms", TermsReply),
    HELLO: ("hello", HelloReply),
    TRAIN: ("train", TrainReply),
    SECURE: ("secure", SecureReply),
}
_LETTERS = re.compile(r"[A-Za-z]{1,60}")


@dataclass(frozen=True)
class OrganisationGate:
    """Lets replies of one organisation to one coordinator out; a `fedpeft.flower.Gate`."""

    link: CoordinatorLink

    def __call__(self, asked: Message, reply: Message) -> Message:
        """What really leaves: the reply, or an error in its place, after it was logged.

        Raises:
            RunError: the log was cut or changed; nothing may leave.
            OSError: the log cannot be written; nothing may leave.
        """
        leaving = _bare(asked, reply) if reply.has_error() else reply
        try:
            facts = self._facts(asked, leaving)
        except PolicyError as refusal:
            leaving = flower.error_reply(asked, flower.REFUSED, refusal.code)
            facts = self._facts(asked, leaving)
        self.link.organisation.outbox.append(facts)
        return leaving

    def _facts(self, asked: Message, reply: Message) -> dict[str, Any]:
        """The entry of a reply that may leave.

        Raises:
            PolicyError: it may not.
        """
        flower_run, run = asked.metadata.run_id, self._run(asked)
        common: dict[str, Any] = {
            "time": time.time(),
            "to": self.link.grant.fingerprint,
            "flower_run": str(flower_run),
            "run": run,
        }
        if reply.has_error():
            return common | {"kind": "error", "code": reply.error.code, "reason": reply.error.reason}
        kind, content, blob = _opened(asked, reply)
        entry: dict[str, Any] = {"kind": kind, "bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
        if kind == "train":
            home = open_home(self.link.organisation.runs / str(run))
            charge = _charge_of(home, content, entry["sha256"])
            entry |= {"epsilon": content.epsilon, "audit": _verdict(home, content.round), "charge": charge}
        facts = {key: _plain(value) for key, value in asdict(content).items()}
        return common | entry | {"round": facts.get("round"), "facts": facts}

    def _run(self, asked: Message) -> str | None:
        """The run that a message belongs to; None where it is not known."""
        if asked.metadata.message_type == TERMS:
            return _named(asked)
        return read_json(self.link.grant.flower, {}).get(str(asked.metadata.run_id))


def _named(asked: Message) -> str | None:
    """The run that terms are about."""
    try:
        return unpack(asked, Terms, LARGEST_TERMS)[0].run.hex()
    except Exception:
        return None


def _opened(asked: Message, reply: Message) -> tuple[str, Any, bytes]:
    """A reply's kind, facts and bytes; anything that is not of the protocol stays here."""
    try:
        kind, form = KINDS[asked.metadata.message_type]
        return kind, *unpack(reply, form, LARGEST_REPLY)
    except Exception as error:
        raise PolicyError("form", f"a reply is not of the protocol ({type(error).__name__})") from None


def _bare(asked: Message, reply: Message) -> Message:
    """An error with its code and one word of letters: the class of an exception or a rule."""
    reason = reply.error.reason or ""
    return flower.error_reply(asked, reply.error.code, reason if _LETTERS.fullmatch(reason) else "Error")


def _charge_of(home: Home, reply: TrainReply, digest: str) -> dict[str, Any]:
    """What the ledger charged for an update; one that it does not list does not leave.

    Raises:
        PolicyError: rule ``ledger``: no reservation of this run and round, or other bytes were released.
    """
    run, entries = home.path.name, NodeContext(home).ledger.entries()
    reserved = {
        entry.seq: entry.body
        for entry in entries
        if (entry.kind, entry.body.get("run"), entry.body.get("round")) == ("reserve", run, reply.round)
    }
    masked = home.config.exchange.secure.enabled
    released = [
        entry.body["reservation"]
        for entry in entries
        if entry.kind == "released"
        and entry.body["reservation"] in reserved
        and (masked or entry.body["sha256"] == digest)
    ]
    if not released:
        raise PolicyError("ledger", f"the ledger released nothing like this update of round {reply.round}")
    return charged(reserved[released[-1]])


def _verdict(home: Home, round: int) -> str:
    """What the node's own audit said of a round's update."""
    if home.config.exchange.secure.enabled:
        return "masked"
    if home.audit.outbox == "off":
        return "off"
    audit = read_json(home.outbox / f"r{round:02d}.audit.json", None)
    if audit is None:
        return "missing"
    return verdict_on(audit["findings"])


def _plain(value: Any) -> Any:
    """A fact as JSON."""
    return value.hex() if isinstance(value, bytes) else json.loads(json.dumps(value))
