"""A hostile node: enrolled with good keys, it trains as it should and then sends something else.

``python hostile.py HOME SEED``. In the home it keeps ``hostile.jsonl``, one line for each reply, and obeys
``hostile.order``: the name of what it does next. Without an order the seed chooses.
"""

from __future__ import annotations

import json
import os
import sys
import time
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
TEXT = "Traceback: Erika Mustermann was admitted on Friday"
OVERSIZED = 32 * 2**20
LONGEST_STEP = 25.0
SILENT_SECONDS = 18.0


@dataclass
class Hostile:
    """A ClientApp, as `fedpeft.flower.serve_node` calls it."""

    home: Path
    seed: int
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
            "replayed": lambda order, facts, blob: self.last or (facts, b""),
            "replayed-restamped": lambda order, facts, blob: (facts, self.last[1] if self.last else b""),
            "wrongly-signed": lambda order, facts, blob: (facts, blob[:-64] + os.urandom(64)),
            "wrong-layout": self._wrong_layout,
            "wrong-round": lambda order, facts, blob: (replace(facts, round=facts.round + 1), blob),
        }

    def __call__(self, message: Any, context: Any) -> Any:
        """The honest reply, or what takes its place."""
        from fedpeft_clients.app import app as honest

        if not message.metadata.message_type.startswith("train"):
            return honest(message=message, context=context)
        kind, place = self._kind(), (self._fedpeft_run(context.run_id), int(message.metadata.group_id))
        again = kind.startswith("replayed") and place == self.place and self.last is not None
        self.place = place
        self._note(message, context, GOOD if again else kind)
        if kind == "silent":
            time.sleep(SILENT_SECONDS)
        elif kind == "hang":
            time.sleep(3600)
        elif kind == "dies":
            os._exit(3)
        reply = honest(message=message, context=context)
        return reply if reply.has_error() else self._spoilt(kind, message, reply)

    def _kind(self) -> str:
        """What is ordered, or the seed's next choice."""
        order = self.home / "hostile.order"
        if order.exists():
            kind = order.read_text()
            order.unlink()
            return kind
        log = self.home / "hostile.jsonl"
        count = len(log.read_bytes().splitlines()) if log.exists() else 0
        rng = np.random.default_rng([self.seed, count])
        return str(rng.choice([GOOD, *CHEAP]))

    def _note(self, message: Any, context: Any, kind: str) -> None:
        facts = {"flower_run": context.run_id, "round": int(message.metadata.group_id), "kind": kind}
        with (self.home / "hostile.jsonl").open("a") as log:
            log.write(json.dumps({**facts, "time": time.time()}) + "\n")

    def _spoilt(self, kind: str, message: Any, reply: Any) -> Any:
        from flwr.app import ConfigRecord, Message, RecordDict

        from fedpeft import flower
        from fedpeft.protocol import TrainReply, TrainTask, pack, unpack

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
        from fedpeft_clients.organisation import open_organisation

        grant = open_organisation(self.home).grant(None)
        return json.loads(grant.flower.read_text()).get(str(flower_run), "")

    def _garbage(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        return facts, os.urandom(len(blob))

    def _desk(self) -> Any:
        from fedpeft_clients.desk import Desk
        from fedpeft_clients.home import open_home

        return Desk.of(open_home(self.home / "runs" / self.place[0]))

    def _context(self, desk: Any, order: Any) -> Any:
        from fedpeft.exchange import Context

        return Context(desk.run, order.round, desk.home.name, order.state, "up")

    def _resealed(self, order: Any, blob: bytes, factor: Any) -> bytes:
        """The same update times a factor, under a good signature."""
        from fedpeft.exchange import Update, open_envelope, seal
        from fedpeft.trust import Verifier
        from fedpeft_clients.desk import plans, signer_of

        desk = self._desk()
        context, layout = self._context(desk, order), desk.attached.layout
        plan = plans(desk).up.at(context)
        verifier = Verifier(signer_of(desk.home).public)
        values = open_envelope(blob, layout, plan.codec, context, verifier).dense() * factor
        return seal(Update(layout, values, order.round, 1), plan, context, signer_of(desk.home))

    def _nan(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        """Numbers that are none, in the dense codec, under a good signature."""
        from fedpeft.exchange import DenseFp32, envelope
        from fedpeft_clients.desk import signer_of

        desk = self._desk()
        layout = desk.attached.layout
        header = envelope.MAGIC + bytes([envelope.VERSION, DenseFp32().id])
        body = header + np.full(layout.size, np.nan, "<f4").tobytes()
        signature = signer_of(desk.home).sign(envelope._signed(body, layout, self._context(desk, order)))
        return facts, body + signature

    def _wrong_layout(self, order: Any, facts: Any, blob: bytes) -> tuple[Any, bytes]:
        """An update of the first tensor only, under a good signature."""
        from fedpeft.exchange import Layout, envelope
        from fedpeft_clients.desk import signer_of

        desk = self._desk()
        layout = desk.attached.layout
        other = Layout(layout.names[:1], layout.shapes[:1])
        body = blob[:-64]
        return facts, body + signer_of(desk.home).sign(
            envelope._signed(body, other, self._context(desk, order))
        )


def main(home: Path, seed: int) -> None:
    """Serve the coordinator that the home has joined, without gate."""
    from fedpeft import flower
    from fedpeft_clients.organisation import open_organisation
    from fedpeft_clients.service import allowed_apps
    from fedpeft_clients.terms import Post

    organisation = open_organisation(home)
    grant = organisation.grant(None)
    os.environ.setdefault("FLWR_HOME", str(home / "flower"))
    flower.hush()
    connection = flower.Connection(
        grant.address,
        grant.ca.read_bytes(),
        organisation.transport.read_bytes(),
        poll=0.2,
        longest_step=LONGEST_STEP,
        memory=grant.folder / "flower.id",
    )
    node_config = {"organisation": str(organisation.path), "coordinator": grant.fingerprint}
    allowed = allowed_apps(Post(organisation, grant).policy())
    app: Any = Hostile(organisation.path, seed)
    flower.serve_node(connection, app, node_config, allowed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
