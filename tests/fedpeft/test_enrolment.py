"""Tokens, requests, answers and transport keys: one valid form, and proof of both keys."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedpeft.errors import ExchangeError, FederationError
from fedpeft.protocol.enrolment import MAX_BYTES, Answer, Request, Token
from fedpeft.trust import (
    Signer,
    certificate_fingerprint,
    fingerprint,
    is_public_line,
    new_transport_key,
    prove,
    proves,
    public_line,
)

TOKEN = Token("-".join(["abcd"] * 8), 8444, "01" * 16)


@pytest.fixture
def made():
    key, signer = new_transport_key(), Signer.generate()
    return Request.make("clinic", TOKEN, key, signer, 1000), key, signer


def changed(request, **values):
    return json.dumps(
        {**json.loads(request.encode()), **values}, sort_keys=True, separators=(",", ":")
    ).encode()


def test_fingerprint_is_eight_groups_of_four():
    assert fingerprint(b"") == "e3b0-c442-98fc-1c14-9afb-f4c8-996f-b924"


def test_transport_key_proves_its_messages_only():
    key, other = new_transport_key(), new_transport_key()
    line, signature = public_line(key), prove(key, b"message")
    assert line.startswith(b"ecdsa-sha2-nistp256 ") and b"\n" not in line and len(line.split()) == 2
    assert proves(line, signature, b"message")
    assert not proves(line, signature, b"another")
    assert not proves(public_line(other), signature, b"message")
    assert not proves(line, b"", b"message")
    assert not proves(b"ssh-ed25519 nonsense", signature, b"message")


def test_public_line_has_one_form():
    line = public_line(new_transport_key())
    assert is_public_line(line)
    assert not is_public_line(line + b" comment")
    assert not is_public_line(line + b"\n")


def test_transport_key_of_another_curve_is_refused():
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    with pytest.raises(ExchangeError, match="EC P-256"):
        public_line(private)
    with pytest.raises(ExchangeError, match="OpenSSH"):
        public_line(b"no key")


def test_no_certificate_has_no_fingerprint():
    with pytest.raises(ExchangeError, match="certificate"):
        certificate_fingerprint(b"no certificate")


def test_token_text_and_back():
    assert Token.parse(f"  {TOKEN}\n") == TOKEN
    assert str(TOKEN) == f"fp1-{'abcd' * 8}-8444-{'01' * 16}"
    assert TOKEN.secret not in repr(TOKEN)


@pytest.mark.parametrize(
    "text", ["", "fp1", str(TOKEN)[:-1], str(TOKEN).replace("8444", "84440"), f"x{TOKEN}"]
)
def test_broken_token_is_refused_and_not_repeated(text):
    with pytest.raises(FederationError, match="copy the whole line") as caught:
        Token.parse(text)
    assert "0101" not in str(caught.value)


def test_request_and_back(made):
    request, _, signer = made
    assert Request.decode(request.encode()) == request
    assert request.proven()
    expected = fingerprint(request.transport.encode() + signer.public)
    assert request.fingerprint() == expected


def test_request_proves_both_keys(made):
    request, key, signer = made
    other = Request.make("clinic", TOKEN, new_transport_key(), signer, 1000)
    assert not replace(request, possession=other.possession).proven()
    stranger = Request.make("clinic", TOKEN, key, Signer.generate(), 1000)
    assert not replace(request, signature=stranger.signature).proven()
    assert not replace(request, name="other").proven()
    assert not replace(request, issued=1001).proven()


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"extra": 1}, "no others"),
        ({"issued": "1"}, "of type int"),
        ({"issued": True}, "of type int"),
        ({"issued": -1}, "seconds since the epoch"),
        ({"name": "../up"}, "name must be"),
        ({"name": "x" * 65}, "name must be"),
        ({"token": "abc"}, "token looks like"),
        ({"token": f"{TOKEN} "}, "anything around"),
        ({"transport": "ssh-rsa AAAA"}, "OpenSSH line"),
        ({"transport": "\ud800"}, "OpenSSH line"),
        ({"signing": "ab"}, "64 hex digits"),
        ({"signing": "A" * 64}, "64 hex digits"),
        ({"signature": "xyz"}, "hex digits"),
    ],
)
def test_request_with_wrong_values_is_refused(made, values, cause):
    with pytest.raises(FederationError, match=cause):
        Request.decode(changed(made[0], **values))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"null", b"[" * 9999, b'{"issued": 1' + b"0" * 9999 + b"}"]
)
def test_nonsense_is_no_request(data):
    with pytest.raises(FederationError, match="an enrolment request"):
        Request.decode(data)


def test_request_in_another_form_is_refused(made):
    with pytest.raises(FederationError, match="one valid form"):
        Request.decode(made[0].encode() + b" ")
    with pytest.raises(FederationError, match="one valid form"):
        Request.decode(b'{"name":"a",' + made[0].encode()[1:])


def test_long_request_is_refused(made):
    with pytest.raises(FederationError, match=f"allowed are {MAX_BYTES}"):
        Request.decode(made[0].encode() + b" " * MAX_BYTES)


def test_answer_is_signed_for_one_request(made):
    signer, name = Signer.generate(), made[0].fingerprint()
    answer = Answer("enrolled", app="0" * 64, federation="north", issued=5).signed(signer, name)
    assert Answer.decode(answer.encode()) == answer
    assert answer.proven(name)
    assert not answer.proven(fingerprint(b"another"))
    assert not replace(answer, app="1" * 64).proven(name)
    assert not Answer("waiting").proven(name)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer("perhaps"), "one of waiting, enrolled, refused"),
        (Answer("enrolled"), "coordinator's key"),
        (Answer("enrolled", coordinator="0" * 64), "app hash"),
        (Answer("refused", "\x1b[2J"), "printable"),
        (Answer("waiting", federation="a b"), "printable"),
        (Answer("waiting", signature="zz"), "hex digits"),
    ],
)
def test_answer_with_wrong_values_is_refused(answer, cause):
    with pytest.raises(FederationError, match=cause):
        Answer.decode(answer.encode())
