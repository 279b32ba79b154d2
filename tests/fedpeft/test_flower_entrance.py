"""The head of a request decides whether its body is read, and by whom it must be signed: in this process."""

import asyncio
import base64
import hashlib
import json
import threading
import time

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.flower.proof import INSIDE, NodeProof, Proven, Refusal, Remembered, SecretProof
from fedpeft.flower.signature import Signing, by_key, by_secret
from fedpeft.flower.superlink.request_check import GUEST, LARGEST_HEAD, Entrance, OpenCall

HERE, ELSEWHERE = "1a2b-here", "3c4d-elsewhere"
CALL, BODY = "/v1/fleet/push-messages", b"what is sent"
LARGEST = 1000


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP256R1())


def pem(key):
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(key.public_key())


def sent(key, audience=HERE, path=CALL, body=BODY):
    """The headers with which fedpeft's node sends a request."""

    class Context:
        request = httpx.Request("POST", f"https://x{path}", content=body)

    Signing(audience, by_key(key)).intercept(Context, lambda _: None)
    headers = {name: value for name, value in Context.request.headers.items() if name.startswith("fedpeft-")}
    return flower_headers(key) | headers | {"content-length": str(len(body))}


def flower_headers(key, moment=None):
    """What Flower's own node signs: the time."""
    from flwr.supercore.date import now

    moment = moment or now().isoformat()
    return {
        "flwr-public-key": base64.b64encode(pem(key)).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(by_key(key)(moment.encode())).decode(),
    }


def scope_of(headers, path=CALL, method="POST", query=b""):
    pairs = headers.items() if isinstance(headers, dict) else headers
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
        "state": {},
    }


def proof(enrolled, stock=(), audience=HERE):
    lines = {one.public_key().public_numbers() for one in stock}

    def is_stock(line):
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key

        return load_ssh_public_key(line.encode()).public_numbers() in lines

    return NodeProof(lambda: audience, lambda found: found in [pem(one) for one in enrolled], is_stock)


class Behind:
    """The application: what reached it."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Visit:
    """One request: how much of its body was asked for, and what was answered."""

    def __init__(self, scope, body=BODY, piece=5):
        self.scope, self.said, self.read = scope, [], 0
        self._body, self._piece = body, piece

    async def receive(self):
        part = self._body[self.read : self.read + self._piece]
        self.read += len(part)
        return {"type": "http.request", "body": part, "more_body": self.read < len(self._body)}

    async def send(self, message):
        self.said.append(message)

    @property
    def status(self):
        return self.said[0]["status"]

    def through(self, entrance):
        asyncio.run(entrance(self.scope, self.receive, self.send))
        return self


def entrance_of(proof, behind=None, **options):
    return Entrance(behind or Behind(), proof, lambda method, path: path == "/health", LARGEST, **options)


def test_a_signed_request_of_an_enrolled_node_goes_through(key):
    behind = Behind()
    visit = Visit(scope_of(sent(key))).through(entrance_of(proof([key]), behind))
    assert visit.status == 200 and behind.bodies == [BODY]


def test_no_byte_of_a_strangers_body_is_read(key):
    behind, other = Behind(), ec.generate_private_key(ec.SECP256R1())
    entrance = entrance_of(proof([key]), behind)
    heads = [{"content-length": "12"}, sent(other), flower_headers(other) | {"content-length": "12"}]
    for headers in heads:
        visit = Visit(scope_of(headers)).through(entrance)
        assert visit.status == 401 and visit.read == 0
    assert behind.bodies == []


@pytest.mark.parametrize(
    "changed",
    [
        {"path": "/v1/fleet/pull-messages"},
        {"method": "PUT"},
        {"query": b"a=b"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_signature_is_good_for_its_own_call(key, changed):
    assert Visit(scope_of(sent(key), **changed)).through(entrance_of(proof([key]))).status == 401


def test_a_signature_is_good_for_its_own_coordinator(key):
    for headers in (sent(key, ELSEWHERE), sent(key, "")):
        visit = Visit(scope_of(headers)).through(entrance_of(proof([key])))
        assert visit.status == 401 and visit.read == 0


def test_a_signature_is_good_for_its_own_body(key):
    behind = Behind()
    visit = Visit(scope_of(sent(key)), BODY[::-1]).through(entrance_of(proof([key]), behind))
    assert visit.status == 401 and behind.bodies == []


@pytest.mark.parametrize("moment", [-400, 400, float("nan"), float("inf")])
def test_a_signature_is_good_for_five_minutes(key, moment, monkeypatch):
    real = time.time
    monkeypatch.setattr("fedpeft.flower.signature.time.time", lambda: real() + moment)
    headers = sent(key)
    monkeypatch.undo()
    assert Visit(scope_of(headers)).through(entrance_of(proof([key]))).status == 401


def test_only_a_key_that_was_enrolled_as_stock_signs_the_time_alone(key):
    headers = flower_headers(key) | {"content-length": str(len(BODY))}
    assert Visit(scope_of(headers)).through(entrance_of(proof([key]))).status == 401
    assert Visit(scope_of(headers)).through(entrance_of(proof([key], stock=[key]))).status == 200
    old = flower_headers(key, "2026-01-01T00:00:00+00:00") | {"content-length": str(len(BODY))}
    assert Visit(scope_of(old)).through(entrance_of(proof([key], stock=[key]))).status == 401


def test_a_header_that_decides_stands_once(key):
    other = ec.generate_private_key(ec.SECP256R1())
    for name in sent(key):
        twice = [(name, (flower_headers(other) | sent(other))[name]), *sent(key).items()]
        visit = Visit(scope_of(twice)).through(entrance_of(proof([key, other])))
        assert visit.status in (401, 413) and visit.read == 0, name


@pytest.mark.parametrize("length", ["", "-1", "1e3", str(LARGEST + 1)])
def test_a_body_is_announced_and_short(key, length):
    visit = Visit(scope_of(sent(key) | {"content-length": length})).through(entrance_of(proof([key])))
    assert visit.status == 413 and visit.read == 0


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1])
def test_a_body_has_the_length_that_was_announced(key, length):
    """Also where the sender signs no body."""
    behind, headers = Behind(), flower_headers(key) | {"content-length": str(length)}
    visit = Visit(scope_of(headers)).through(entrance_of(proof([key], stock=[key]), behind))
    assert visit.status == 401 and behind.bodies == []


def test_a_long_head_is_refused(key):
    long = sent(key) | {"x": "A" * LARGEST_HEAD}
    visit = Visit(scope_of(long)).through(entrance_of(proof([key])))
    assert visit.status == 431 and visit.read == 0


def test_what_one_sender_has_under_way_is_bounded(key):
    """While the first body is under way the second is one too many; the third comes after it."""
    entrance = entrance_of(proof([key]), most_under_way=2 * len(BODY) - 1)
    first, second, third = (Visit(scope_of(sent(key))) for _ in range(3))

    async def go():
        release = asyncio.Event()

        async def slow():
            await release.wait()
            return await Visit.receive(first)

        task = asyncio.create_task(entrance(first.scope, slow, first.send))
        await asyncio.sleep(0.2)
        await entrance(second.scope, second.receive, second.send)
        release.set()
        await task
        await entrance(third.scope, third.receive, third.send)

    asyncio.run(go())
    assert (first.status, second.status, third.status) == (200, 429, 200)
    assert second.read == 0 and not entrance._under_way


def test_a_stranger_gets_one_answer(key):
    entrance = entrance_of(proof([key]))
    for scope in (scope_of({}, "/health", "GET"), scope_of({"content-length": "12"})):
        head = Visit(scope).through(entrance).said[0]
        assert (b"connection", b"close") in head["headers"]


def test_a_connection_is_told_who_is_on_it_once_that_is_proved(key):
    told = []

    class Guest:
        def prove(self, who):
            told.append(who)

    for headers in ({"content-length": "12"}, sent(key)):
        scope = scope_of(headers)
        scope["state"][GUEST] = Guest()
        Visit(scope).through(entrance_of(proof([key])))
    assert len(told) == 1 and told[0].startswith("ecdsa-sha2-nistp256 ")


@pytest.mark.parametrize(("call", "code"), [("activate-node", 2004), ("register-node", 2001)])
def test_a_key_that_nobody_enrolled_hears_what_flower_says(key, call, code):
    path = f"/v1/fleet/{call}"
    visit = Visit(scope_of(sent(key, path=path), path)).through(entrance_of(proof([])))
    assert visit.status == 412 and json.loads(visit.said[1]["body"])["code"] == code and visit.read == 0


def test_the_secret_opens_the_inside_and_nothing_else_does(key):
    def asked(secret, audience=INSIDE, body=BODY):
        class Context:
            request = httpx.Request("POST", f"http://x{CALL}", content=body)

        Signing(audience, by_secret(secret)).intercept(Context, lambda _: None)
        return scope_of({name: str(value) for name, value in Context.request.headers.items()})

    entrance = entrance_of(SecretProof(b"s" * 32))
    assert Visit(asked(b"s" * 32)).through(entrance).status == 200
    wrong = [asked(b"x" * 32), asked(b""), asked(b"s" * 32, HERE), scope_of(sent(key)), scope_of({})]
    for scope in wrong:
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope["headers"].append((b"content-length", str(len(BODY)).encode()))
        assert Visit(scope).through(entrance).status == 401


def test_a_yes_is_remembered_for_a_moment_and_a_no_is_not():
    asked, now, known = [], [0.0], {b"a"}
    remembered = Remembered(lambda key: asked.append(key) or key in known, lambda: now[0])
    assert remembered(b"a") and remembered(b"a") and asked == [b"a"]
    assert not remembered(b"b") and not remembered(b"b") and asked == [b"a", b"b", b"b"]
    known.clear()
    now[0] = 6.0
    assert not remembered(b"a")


def test_what_is_signed_says_which_body(key):
    found = proof([key])(scope_of(sent(key)))
    assert isinstance(found, Proven) and found.digest == hashlib.sha256(BODY).hexdigest()


def open_scope(length, **changed):
    headers = {} if length is None else {"content-length": str(length)}
    return scope_of(headers, **changed) | {"client": ("10.0.0.1", 5)}


def test_an_open_call_takes_one_short_body_and_ends_the_connection():
    asked = []
    call = OpenCall(CALL, len(BODY), lambda *given: asked.append(given) or b"{}")
    visit = Visit(open_scope(len(BODY))).through(call)
    assert asked == [(BODY, "10.0.0.1")]
    assert visit.status == 200 and visit.said[1]["body"] == b"{}"
    assert (b"connection", b"close") in visit.said[0]["headers"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"length": None}, 413),
        ({"length": "-1"}, 413),
        ({"length": len(BODY) + 1}, 413),
        ({"path": "/health"}, 404),
        ({"method": "GET"}, 404),
        ({"query": b"x" * LARGEST_HEAD}, 431),
    ],
)
def test_an_open_call_reads_no_body_that_it_does_not_want(changed, status):
    call = OpenCall(CALL, len(BODY), lambda *given: pytest.fail("called"))
    visit = Visit(open_scope(**{"length": len(BODY), **changed})).through(call)
    assert visit.status == status and visit.read == 0


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1])
def test_an_open_call_is_not_made_with_another_length_than_was_announced(length):
    call = OpenCall(CALL, 2 * len(BODY), lambda *given: pytest.fail("called"))
    assert Visit(open_scope(length)).through(call).status == 400


def test_open_calls_under_way_are_bounded_and_forgotten():
    """What holds the calls up holds their bodies too; with two under way a third is not begun."""
    held, most = threading.Event(), 2

    def slow(body, address):
        assert held.wait(60)
        return Refusal(503, "a fault\n")

    call = OpenCall(CALL, len(BODY), slow, most)

    async def crowd():
        visits = [Visit(open_scope(len(BODY))) for _ in range(most + 1)]
        tasks = [asyncio.create_task(call(one.scope, one.receive, one.send)) for one in visits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [bool(one.said) for one in visits] == [False, False, True]
        assert b"busy" in visits[-1].said[1]["body"]
        held.set()
        await asyncio.gather(*tasks)
        assert [one.said[1]["body"] for one in visits[:most]] == [b"a fault\n"] * most

    asyncio.run(crowd())
    assert call._under_way == 0
