"""A hostile node: enrolled with good keys, it trains as it should and then sends something else.

``python hostile.py HOME SEED``. In the home it keeps ``hostile.jsonl``, one line for each reply, and obeys
``hostile.order``: the name of what it does next. Without an order it does what it has done least so far, and
the seed chooses among several. Its own ledger and log stop it from nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

GOOD = "good"
CHEAP = (
    "garbage",
    "oversized",
    "nan",
    "not-a-number-facts",
    "huge",
    "sign-flip",
    "replayed",
    "replayed-restamped",
    "wrongly-signed",
    "wrong-layout",
    "wrong-round",
    "wrong-kind",
    "error-with-text",
)
COSTLY = ("silent", "hang", "dies")
NOT_SENT = "not sent: "
"""Begins what is noted where the node's own app failed, so that nothing hostile left."""
TEXT = "Traceback: Erika Mustermann was admitted on Friday"
OVERSIZED = 32 * 2**20
LOG, ORDER = "hostile.jsonl", "hostile.order"
LONGEST_STEP = 25.0
SILENT_SECONDS = 18.0
"""Longer than a round's deadline."""
HANG_SECONDS = 3600.0
"""Longer than a step of this process may take: it is ended and started again."""


@dataclass
class Hostile:
    """A ClientApp, as `fedpeft.flower.serve_node` calls it."""

    home: Path
    seed: int
    honest: Any
    last: Any = None
    place: tuple[str, int] = ("", 0)
    done: dict[str, Callable[..., Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.done = {
            "garbage": self._garbage,
            "oversized": lambda order, facts, blob: (facts, bytes(OVERSIZED)),
            "nan": self._nan,
            "not-a-number-facts": lambda order, facts, blob: (replace(facts, train_s=float("nan")), blob),
            "huge": lambda order, facts, blob: (facts, self._resealed(order, blob, np.float32(2**20))),
            "sign-flip": lambda order, facts, blob: (facts, self._resealed(order, blob, np.float32(-1))),
            "replayed": lambda order, facts, blob: self.last,
            "replayed-restamped": lambda order, facts, blob: (facts, self.last[1]),
            "wrongly-signed": lambda order, facts, blob: (facts, blob[:-64] + os.urandom(64)),
            "wrong-layout": self._wrong_layout,
            "silent": self._late,
            "wrong-round": lambda order, facts, blob: (replace(facts, round=facts.round + 1), blob),
        }

    def __call__(self, message: Any, context: Any) -> Any:
        """The honest reply, or what takes its place."""
        from fedpeft.flower import guarded

        if not message.metadata.message_type.startswith("train"):
            return self.honest(message=message, context=context)
        kind, place = self._kind(), (self._fedpeft_run(context.run_id), int(message.metadata.group_id))
        if kind.startswith("replayed") and (self.last is None or place == self.place):
            kind = GOOD
        self.place = place
        if kind in COSTLY:
            self._note(message, context, kind)
        if kind == "hang":
            time.sleep(HANG_SECONDS)
        elif kind == "dies":
            os._exit(3)
        reply = guarded(self.honest, message, context)
        if reply.has_error():
            self._note(message, context, f"{NOT_SENT}{reply.error.reason}")
            return reply
        spoilt = self._spoilt(kind, message, reply)
        if kind not in COSTLY:
            self._note(message, context, kind)
        return spoilt

    def _kind(self) -> str:
        """What is ordered, else what was sent least."""
        if self._order.exists():
            return self._order.read_text()
        sent = Counter(entry["kind"] for entry in noted(self.home))
        fewest = min(sent[kind] for kind in (GOOD, *CHEAP))
        rng = np.random.default_rng([self.seed, sent.total()])
        return str(rng.choice([kind for kind in (GOOD, *CHEAP) if sent[kind] == fewest]))

    @property
    def _order(self) -> Path:
        return self.home / ORDER

    def _note(self, message: Any, context: Any, kind: str) -> None:
        """Write down what is done now; an order for it is obeyed."""
        facts = {"flower_run": context.run_id, "round": int(message.metadata.group_id), "kind": kind}
        with (self.home / LOG).open("a") as log:
            log.write(json.dumps({**facts, "time": time.time()}) + "\n")
        if self._order.exists() and self._order.read_text() == kind:
            self._order.unlink()

    def _spoilt(self, kind: str, message: Any, reply: Any) -> Any:
        from flwr.app import ConfigRecord, Message, RecordDict

        from fedpeft import flower
        from fedpeft.protocol.encoding import pack, unpack
        from fedpeft.protocol.messages import TrainReply, TrainTask

        if kind == "error-with-text":
            return flower.error_reply(message, flower.APP_FAILED, TEXT)
        if kind == "wrong-kind":
            return Message(RecordDict({"facts": ConfigRecord({"text": TEXT})}), reply_to=message)
        order, _ = unpack(message, TrainTask, 1 << 31)
        facts, blob = unpack(reply, TrainReply, 1 << 31)
        if kind not in self.done:
            self.last = (facts, blob)
            return reply
        spoilt = self.done[kind](order, facts, blob)
        self.last = (facts, blob)
        return Message(pack(*spoilt), reply_to=message)

    def _fedpeft_run(self, flower_run: int) -> str:
        """Whose round it is: asked again for one, after a kill, a replay is what an honest node sends too."""
        from fedpeft_clients.governance.organisation import open_organisation

        grant = open_organisation(self.home).grant(None)
        return json.loads(grant.flower.read_text()).get(str(flower_run), "")

    def _late(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        """The honest reply, after its round."""
        time.sleep(SILENT_SECONDS)
        return facts, blob

    def _garbage(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        return facts, os.urandom(len(blob))

    def _desk(self) -> Any:
        from fedpeft_clients.rounds.node_context import NodeContext
        from fedpeft_clients.rounds.run_home import open_home

        return NodeContext(open_home(self.home / "runs" / self.place[0]))

    def _context(self, desk: Any, order: Any) -> Any:
        from fedpeft.exchange import Context

        return Context(desk.run, order.round, desk.home.name, order.state, "up")

    def _resealed(self, order: Any, blob: bytes, factor: Any) -> bytes:
        """The same update times a factor, under a good signature."""
        from fedpeft.exchange import Update, open_envelope, seal
        from fedpeft.trust import Verifier

        desk = self._desk()
        context, layout = self._context(desk, order), desk.attached.layout
        plan = desk.plan.up.at(context)
        verifier = Verifier(desk.signer.public)
        values = open_envelope(blob, layout, plan.codec, context, verifier).dense() * factor
        return seal(Update(layout, values, order.round, 1), plan, context, desk.signer)

    def _nan(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        """Numbers that are none, in the dense codec, under a good signature."""
        from fedpeft.exchange import DenseFp32, envelope

        desk = self._desk()
        layout = desk.attached.layout
        header = envelope.MAGIC + bytes([envelope.VERSION, DenseFp32().id])
        body = header + np.full(layout.size, np.nan, "<f4").tobytes()
        signature = desk.signer.sign(envelope._signed(body, layout, self._context(desk, order)))
        return facts, body + signature

    def _wrong_layout(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        """An update of the first tensor only, under a good signature."""
        from fedpeft.exchange import Layout, envelope

        desk = self._desk()
        layout = desk.attached.layout
        other = Layout(layout.names[:1], layout.shapes[:1])
        body = blob[:-64]
        return facts, body + desk.signer.sign(envelope._signed(body, other, self._context(desk, order)))


def noted(home: Path) -> list[dict[str, Any]]:
    """What the hostile node of a home did, in order: ``flower_run``, ``round``, ``kind`` and ``time``."""
    log = home / LOG
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def order(home: Path, kind: str) -> Path:
    """Tell the hostile node of a home what to do next; the file is gone once it does so."""
    path = home / ORDER
    path.with_suffix(".new").write_text(kind)
    return path.with_suffix(".new").replace(path)


def ignore_books() -> None:
    """Let this process train whatever the ledger and the log of its organisation say.

    An honest node takes no order once its ledger would exceed a budget or a run's promise, nor while ledger
    and outbox log disagree, as they do where replies leave past the gate that writes the log.
    """
    from fedpeft.privacy import Budget, Ledger
    from fedpeft_clients.outbox import ledger_witness
    from fedpeft_clients.rounds import ledger_view

    ledgers: Any = Ledger
    ledgers.budget = property(lambda ledger: Budget(), lambda ledger, given: None)
    ledger_view.require = ledger_witness.require = lambda *books: None


def serve(home: Path, app: Any, longest_step: float) -> None:
    """Serve the coordinator that a home has joined with any app, without a gate, whatever its books say."""
    from fedpeft import flower
    from fedpeft_clients.governance.organisation import open_organisation
    from fedpeft_clients.governance.run_approval import CoordinatorLink
    from fedpeft_clients.service.service import allowed_apps

    organisation = open_organisation(home)
    grant = organisation.grant(None)
    os.environ.setdefault("FLWR_HOME", str(home / "flower"))
    flower.hush()
    ignore_books()
    connection = flower.Connection(
        grant.address,
        grant.ca.read_bytes(),
        organisation.transport.read_bytes(),
        poll=0.2,
        longest_step=longest_step,
        memory=grant.folder / "flower.id",
    )
    node_config = {"organisation": str(organisation.path), "coordinator": grant.fingerprint}
    allowed = allowed_apps(CoordinatorLink(organisation, grant).policy())
    flower.serve_node(connection, app, node_config, allowed)


def main(home: Path, seed: int) -> None:
    """Be the hostile node of a home."""
    from fedpeft_clients.app import app as honest

    serve(home, Hostile(home, seed, honest), LONGEST_STEP)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
