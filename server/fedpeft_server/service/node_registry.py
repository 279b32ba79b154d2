"""Who may take part: one-time tokens and nodes, in files that commands and service change under a lock."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

from fedpeft.errors import ConfigError
from fedpeft.protocol.enrolment import Request, State, Token, valid_name
from fedpeft.runstore import Format, write_json
from fedpeft_server.service.server_home import ServerHome

LARGEST_SKEW = 300
"""Seconds that a node's clock may differ: Flower's own authentication allows no more."""
_LOCK = "registry.lock"
ENTRIES = Format()
"""Of ``nodes.json`` and ``tokens.json``."""
_T = TypeVar("_T")

NodeState = Literal["waiting", "enrolled", "revoked"]


@dataclass(frozen=True)
class Node:
    """One organisation's node.

    Attributes:
        transport: OpenSSH public line.
        signing: Ed25519 public key, 64 hex digits.
        fingerprint: of both.
        state: ``waiting``, ``enrolled`` or ``revoked``.
        since: seconds since the epoch of the last change of state.
        stock: the operator expects a stock Flower node: the link takes its weaker signature.
    """

    transport: str
    signing: str
    fingerprint: str
    state: NodeState
    since: float
    stock: bool = False


@dataclass(frozen=True)
class IssuedToken:
    """A token that was given out; its text is not stored, only the SHA-256 that finds it.

    Attributes:
        name: whom it lets in.
        expires: seconds since the epoch after which no new key may use it.
        fingerprint: of the keys that used it first; empty: unused.
        stock: as of `Node`.
    """

    name: str
    expires: float
    fingerprint: str = ""
    stock: bool = False


@dataclass(frozen=True)
class Ruling:
    """What a request is answered: its state and, unless enrolled, the cause in plain words."""

    state: State
    cause: str = ""


@dataclass(frozen=True)
class Registry:
    """``nodes.json`` and ``tokens.json`` of a coordinator."""

    home: ServerHome

    def nodes(self) -> dict[str, Node]:
        """All nodes by name, as the files have them now.

        Raises:
            ConfigError: the file is damaged.
        """
        return _read(self.home, "nodes.json", Node)

    def enrolled(self) -> dict[str, Node]:
        """The nodes that may take part, by name."""
        return {name: node for name, node in self.nodes().items() if node.state == "enrolled"}

    def new_token(self, name: str, hours: float, stock: bool = False) -> Token:
        """A token that lets one node of this name in; earlier ones of the name end.

        Raises:
            ConfigError: no name, no time, or the name is enrolled already.
        """
        if not valid_name(name):
            raise ConfigError(f"{name!r} is no name: use 1 to 64 letters, digits, '.', '_' or '-'")
        if not 0 < hours <= 24 * 30:
            raise ConfigError(f"--hours {hours:g}: a token is good for more than 0 and at most 720 hours")
        with self.home.locked(_LOCK):
            if name in self.enrolled():
                raise ConfigError(f"{name!r} is enrolled; 'fedpeft server revoke {name}' comes first")
            token = Token.make((self.home.path / "ca.crt").read_bytes(), self.home.settings.enrolment_port)
            now, tokens = time.time(), self._tokens()
            self.home.record("enroll", node=name, hours=hours, stock=stock)
            others = {
                key: other for key, other in tokens.items() if other.name != name and _alive(other, now)
            }
            issued = IssuedToken(name, now + 3600 * hours, stock=stock)
            self._write("tokens.json", {**others, _digest(token): issued})
        return token

    def check(self, request: Request, now: float) -> Ruling:
        """Answer a request, remembering its keys if it is the first to use a good token.

        The same request may come any number of times: it changes nothing after the first.
        """
        if abs(now - request.issued) > LARGEST_SKEW:
            return Ruling(
                "refused", f"the request is {abs(now - request.issued):.0f} s off: set the node's clock"
            )
        if not request.proven():
            return Ruling("refused", "the request is not signed by both of its keys")
        with self.home.locked(_LOCK):
            return self._check(request, now)

    def _check(self, request: Request, now: float) -> Ruling:
        tokens, fingerprint = self._tokens(), request.fingerprint()
        digest = _find(tokens, _digest(Token.parse(request.token)))
        if digest is None:
            return Ruling("refused", "the token is unknown or has ended: ask for a new one")
        token = tokens[digest]
        if token.name != request.name:
            return Ruling("refused", "the token was made for another name")
        if token.fingerprint and token.fingerprint != fingerprint:
            return Ruling("refused", "the token has been used by another key: ask for a new one")
        if not token.fingerprint:
            if now > token.expires:
                return Ruling("refused", "the token has expired: ask for a new one")
            return self._bind(request, digest, tokens)
        return _ruling(self.nodes().get(request.name), fingerprint)

    def _bind(self, request: Request, digest: str, tokens: Mapping[str, IssuedToken]) -> Ruling:
        """Let a new key wait for the operator."""
        nodes, fingerprint = self.nodes(), request.fingerprint()
        if request.transport in self.revoked():
            return Ruling("refused", "this transport key was revoked: make a new one")
        for name, node in nodes.items():
            if name != request.name and request.transport == node.transport:
                return Ruling("refused", "this transport key belongs to another name: make a new one")
        if request.name in nodes and nodes[request.name].state == "enrolled":
            return Ruling("refused", "this name is enrolled already")
        stock = tokens[digest].stock
        entry = Node(request.transport, request.signing, fingerprint, "waiting", time.time(), stock)
        self._write("nodes.json", {**nodes, request.name: entry})
        self._write("tokens.json", {**tokens, digest: replace(tokens[digest], fingerprint=fingerprint)})
        return _ruling(entry, fingerprint)

    def approve(self, name: str, fingerprint: str) -> Node:
        """Admit a waiting node whose operator read this fingerprint out.

        Raises:
            ConfigError: no such node waits, or its fingerprint is another.
        """
        with self.home.locked(_LOCK):
            node = self._known(name)
            if node.state == "revoked":
                raise ConfigError(f"{name!r} is revoked; 'fedpeft server enroll {name}' makes a new token")
            if not hmac.compare_digest(_digits(fingerprint), _digits(node.fingerprint)):
                raise ConfigError(
                    f"{name!r} has another fingerprint than {fingerprint}: do not admit it before its "
                    "operator has read out the one that 'fedpeft node join' shows"
                )
            self.home.record("approve", node=name, fingerprint=node.fingerprint)
            return self._change(name, node, "enrolled")

    def revoke(self, name: str) -> Node:
        """End a node's part; no other node is touched. A key that was enrolled never comes back.

        Raises:
            ConfigError: there is no such node.
        """
        with self.home.locked(_LOCK):
            node = self._known(name)
            self.home.record("revoke", node=name, fingerprint=node.fingerprint)
            if node.state == "enrolled":
                write_json(self.home.path / "revoked.json", sorted({*self.revoked(), node.transport}))
            return self._change(name, node, "revoked")

    def revoked(self) -> list[str]:
        """Transport keys that were enrolled and revoked, OpenSSH lines: Flower takes no key twice."""
        try:
            return list(json.loads((self.home.path / "revoked.json").read_text()))
        except FileNotFoundError:
            return []
        except (ValueError, TypeError):
            raise ConfigError(f"{self.home.path / 'revoked.json'} is damaged; restore it") from None

    def _known(self, name: str) -> Node:
        nodes = self.nodes()
        if name not in nodes:
            raise ConfigError(f"no node {name!r}; known are: {', '.join(sorted(nodes)) or 'none'}")
        return nodes[name]

    def _change(self, name: str, node: Node, state: NodeState) -> Node:
        if node.state == state:
            return node
        changed = replace(node, state=state, since=time.time())
        self._write("nodes.json", {**self.nodes(), name: changed})
        return changed

    def _tokens(self) -> dict[str, IssuedToken]:
        return _read(self.home, "tokens.json", IssuedToken)

    def _write(self, file: str, entries: Mapping[str, Node] | Mapping[str, IssuedToken]) -> None:
        ENTRIES.write(self.home.path / file, {key: asdict(entries[key]) for key in sorted(entries)})


def _read(home: ServerHome, file: str, kind: type[_T]) -> dict[str, _T]:
    try:
        return {key: kind(**value) for key, value in ENTRIES.read(home.path / file, {}).items()}
    except TypeError:
        raise ConfigError(f"{home.path / file} is damaged; restore it from a backup") from None


def _digest(token: Token) -> str:
    return hashlib.sha256(str(token).encode()).hexdigest()


def _find(tokens: Mapping[str, IssuedToken], digest: str) -> str | None:
    """The stored digest that equals this one; each comparison takes the same time."""
    return next((key for key in tokens if hmac.compare_digest(key, digest)), None)


def _alive(token: IssuedToken, now: float) -> bool:
    """Whether a token still has a meaning: a used one stands for its node."""
    return bool(token.fingerprint) or now <= token.expires


def _digits(fingerprint: str) -> bytes:
    return fingerprint.strip().lower().replace("-", "").replace(":", "").encode()


def _ruling(node: Node | None, fingerprint: str) -> Ruling:
    """The answer to a node that used its token first."""
    if node is None or node.fingerprint != fingerprint or node.state == "revoked":
        return Ruling("refused", "the node is not admitted any more: ask for a new token")
    if node.state == "waiting":
        return Ruling("waiting", f"the coordinator's operator has to approve fingerprint {fingerprint}")
    return Ruling("enrolled")
