"""Signing keys."""

import pytest

from fedpeft.errors import ExchangeError
from fedpeft.trust import Signer, Verifier


def test_signs_and_verifies():
    signer = Signer.generate()
    signature = signer.sign(b"message")
    verifier = Verifier(signer.public)
    assert len(signature) == 64 and len(signer.public) == 32
    assert verifier.verify(signature, b"message")
    assert not verifier.verify(signature, b"messagf")
    assert not verifier.verify(bytes(64), b"message")
    assert not verifier.verify(b"short", b"message")
    assert not Verifier(Signer.generate().public).verify(signature, b"message")
    assert not Verifier(b"\xff" * 32).verify(signature, b"message")


def test_rfc_8032_test_1():
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signer = Signer(secret)
    assert signer.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert (
        signer.sign(b"")
        .hex()
        .startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555f")
    )


def test_seeds_are_reproducible_and_generated_keys_are_not():
    assert Signer.from_seed(b"a").public == Signer.from_seed(b"a").public
    assert Signer.from_seed(b"a").public != Signer.from_seed(b"b").public
    assert Signer.generate().public != Signer.generate().public


def test_the_secret_is_not_printed():
    signer = Signer.from_seed(b"a")
    assert repr(signer) == "Signer()"


def test_keys_on_disk_are_made_once_and_private(tmp_path):
    path = tmp_path / "keys" / "node.key"
    signer = Signer.load_or_create(path)
    assert Signer.load_or_create(path).public == signer.public
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(ExchangeError, match="32 bytes"):
        Signer.load_or_create(path)
    with pytest.raises(ExchangeError, match="32 bytes"):
        Verifier(b"short")
