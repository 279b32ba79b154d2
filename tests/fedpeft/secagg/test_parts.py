"""Shamir shares, mask streams, integers, terms and the store of releases."""

from __future__ import annotations

import dataclasses
import itertools
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.secagg import (
    ReleaseStore,
    SecureAggregationError,
    SecureContext,
    TermsRefused,
    bits_for,
    from_residues,
    masks,
    shamir,
    to_residues,
)

ROSTER = tuple((f"node-{i}", bytes([i]) * 32) for i in range(5))


def context(**changes):
    fields = dict(run=b"r" * 16, round=3, attempt=1, state=bytes(32), roster=ROSTER, threshold=4)
    return SecureContext(**(fields | dict(least_nodes=4, size=10, bits=8, public=bytes(32)) | changes))


# Shamir


def naive_join(shares):
    """Lagrange interpolation at zero over the rationals, reduced at the end."""
    total = Fraction(0)
    for point, share in shares.items():
        term = Fraction(int.from_bytes(share, "little"))
        for other in shares:
            if other != point:
                term *= Fraction(other, other - point)
        total += term
    prime = shamir.PRIME
    return total.numerator * pow(total.denominator, -1, prime) % prime


@pytest.mark.parametrize(("threshold", "count"), [(1, 3), (2, 2), (3, 5), (5, 7)])
def test_every_subset_of_the_threshold_gives_the_secret(threshold, count):
    secret = shamir.fresh_secret()
    shares = shamir.split(secret, threshold, range(1, count + 1))
    for points in itertools.combinations(shares, threshold):
        chosen = {point: shares[point] for point in points}
        assert shamir.join(chosen) == secret
        assert naive_join(chosen) == int.from_bytes(secret, "little")
    assert shamir.join(shares) == secret


def test_fewer_shares_are_consistent_with_every_secret():
    shares = shamir.split(shamir.fresh_secret(), 4, range(1, 8))
    known = {point: shares[point] for point in (1, 4, 6)}
    for secret in (0, 1, shamir.PRIME - 1, 2**200):
        points = {0: secret.to_bytes(32, "little"), **known}

        def at(place, points=points):
            moved = {point - place: share for point, share in points.items()}
            return naive_join(moved)

        completed = known | {7: at(7).to_bytes(32, "little")}
        assert shamir.join(completed) == secret.to_bytes(32, "little")


def test_shares_of_the_same_secret_differ_each_time():
    secret = shamir.fresh_secret()
    first, second = (shamir.split(secret, 2, [1, 2]) for _ in range(2))
    assert first[1] != second[1] and shamir.join({1: first[1], 2: second[2]}) != secret


def test_the_largest_element_is_shared_and_the_prime_refused():
    largest = (shamir.PRIME - 1).to_bytes(32, "little")
    assert shamir.join(shamir.split(largest, 2, [5, 9])) == largest
    with pytest.raises(ValueError, match="not an element"):
        shamir.split(shamir.PRIME.to_bytes(32, "little"), 2, [1, 2])


# Masks


def test_the_stream_is_aes_256_ctr():
    """Key and first cipher block of the all-zero counter, then the vector of NIST SP 800-38A F.1.5."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    total = np.zeros(32, np.uint8)
    masks.add_stream(total, key, 1)
    assert total[:16].tobytes().hex() == "e568f68194cf76d6174d4cc04310a854"
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    assert block.update((1).to_bytes(16, "big")) == total[16:].tobytes()


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("values", [1, 7, masks.CHUNK, 2 * masks.CHUNK + 5])
def test_streams_of_any_size_match_the_plain_cipher(bits, values):
    from fedpeft.privacy.csprng import keystream

    dtype, key = np.dtype(f"<u{bits // 8}"), os.urandom(32)
    start = np.random.default_rng(0).integers(0, 2**bits, values, dtype=dtype)
    stream = keystream(key, values).view(dtype)[:values]
    total = start.copy()
    masks.add_stream(total, key, 1)
    assert np.array_equal(total, start + stream)
    masks.add_stream(total, key, -1)
    assert np.array_equal(total, start)


def test_keys_are_known_answers():
    """HKDF-SHA256 (RFC 5869) over a fixed context: a change of format is a change of protocol."""
    import hashlib
    import hmac

    terms = context()
    parts = [b"mask", terms.digest, b"node-0", b"node-1"]
    info = b"fedpeft-secagg-key-1\0" + b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    pseudo_random = hmac.new(bytes(32), b"k" * 32, hashlib.sha256).digest()
    expected = hmac.new(pseudo_random, info + b"\1", hashlib.sha256).digest()
    assert masks.derive(terms, "mask", b"k" * 32, "node-0", "node-1") == expected
    assert terms.digest.hex() == "d12e6a320f2717814fc5427e5812422f59d48e8d3b5baca000bab1acce160f9c"


def test_no_two_rounds_or_pairs_share_a_stream():
    """Bits are uniform, and streams of other rounds, attempts, pairs and purposes agree in half of them."""
    size, streams = 1 << 16, []
    variants = [
        (context(size=size, **change), "node-0", "node-1") for change in ({}, {"round": 4}, {"attempt": 2})
    ]
    variants += [(context(size=size), "node-0", "node-2"), (context(size=size), "node-1", "node-2")]
    for terms, first, last in variants:
        total = np.zeros(size, np.uint8)
        masks.add_pair(terms, total, first, last, b"k" * 32)
        streams.append(total)
    alone = np.zeros(size, np.uint8)
    masks.add_self(context(size=size), alone, "node-0", b"k" * 32)
    zero = np.zeros(size, np.uint8)
    for one, other in itertools.combinations([*streams, alone, zero], 2):
        differing = int(np.unpackbits(one ^ other).sum())
        assert abs(differing - 4 * size) < 6 * np.sqrt(2 * size)
        counts = np.bincount(one ^ other, minlength=256)
        assert ((counts - size / 256) ** 2).sum() / (size / 256) < 400  # 255 degrees: below 1e-8


# Integers


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3), min_size=1, max_size=127))
def test_ternary_sums_of_127_nodes_fit_a_byte(rows):
    total = np.zeros(3, np.uint8)
    for row in rows:
        total += to_residues(np.array(row), 8, 1)
    assert from_residues(total, 8, len(rows)).tolist() == np.sum(rows, axis=0).tolist()


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_residues_are_twos_complement(bits):
    most = 2 ** (bits - 1) - 1
    values = np.array([0, 1, -1, most, -most, -most - 1])
    residues = to_residues(values, bits)
    assert residues.dtype == np.dtype(f"<u{bits // 8}")
    assert residues.tolist() == [value % 2**bits for value in values.tolist()]
    assert from_residues(residues, bits).tolist() == values.tolist()
    assert to_residues(np.array([2**40 + 5]), bits).tolist() == [5]


@pytest.mark.parametrize(("bound", "bits"), [(1, 8), (127, 8), (128, 16), (32767, 16), (32768, 32)])
def test_the_least_width_is_chosen(bound, bits):
    assert bits_for(bound) == bits
    ends = np.array([bound, -bound])
    assert from_residues(to_residues(ends, bits, bound), bits, bound).tolist() == [bound, -bound]


def test_no_width_holds_everything():
    with pytest.raises(SecureAggregationError, match="use coarser steps"):
        bits_for(2**31)


def test_values_beyond_their_bound_are_refused():
    for value in (2, -2):
        with pytest.raises(SecureAggregationError, match="beyond the declared bound 1"):
            to_residues(np.array([0, value]), 8, 1)
    with pytest.raises(SecureAggregationError, match="do not fit 8 bits"):
        from_residues(np.zeros(1, np.uint8), 8, 128)
    with pytest.raises(SecureAggregationError, match="some node sent values beyond"):
        from_residues(np.array([250], np.uint8), 8, 5)


# Terms


def test_every_field_is_in_the_digest():
    changes = dict(run=b"s" * 16, round=4, attempt=2, state=b"s" * 32, roster=ROSTER[:4], threshold=3)
    changes |= dict(least_nodes=3, size=11, bits=16, public=b"p" * 32, colluders=1)
    assert set(changes) == {field.name for field in dataclasses.fields(SecureContext)}
    digests = {context(**{name: value}).digest for name, value in changes.items()}
    assert len(digests | {context().digest}) == len(changes) + 1


def test_terms_survive_bytes_and_nothing_else_does():
    terms = context()
    assert SecureContext.from_bytes(terms.to_bytes()) == terms
    assert SecureContext.from_bytes(terms.to_bytes()).digest == terms.digest
    for data in (
        b"",
        b"[]",
        b"{}",
        b"\xff",
        terms.to_bytes() + b" ",
        b"[" * 100_000,
        terms.to_bytes().replace(b'"bits":8', b'"bits":8.0'),
        terms.to_bytes().replace(b'"round":3', b'"round":true'),
        terms.to_bytes().replace(b"node-0", b"\\ud800"),
    ):
        with pytest.raises(SecureAggregationError, match=r"no secure context|must be"):
            SecureContext.from_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": b"short"}, "run 5 must be 16 bytes"),
        ({"roster": ROSTER[:1]}, "roster 1 must be of 2 to 127"),
        ({"roster": tuple((f"{i:03}", bytes([i]) * 32) for i in range(128))}, "roster 128"),
        ({"roster": ROSTER[::-1]}, "sorted, each name once"),
        ({"roster": (*ROSTER, ("node-4", b"x" * 32))}, "sorted, each name once"),
        ({"roster": (*ROSTER, ("node-9", ROSTER[0][1]))}, "one key each"),
        ({"roster": (("", b"x" * 32), *ROSTER)}, "of printable names"),
        ({"threshold": 6}, "threshold 6"),
        ({"threshold": 0}, "threshold 0"),
        ({"threshold": 2}, "2 of 5 nodes could open two sums"),
        ({"least_nodes": 6}, "a sum needs 6 nodes"),
        ({"colluders": 2}, "a sum needs 6 nodes"),
        ({"size": 0}, "size 0"),
        ({"bits": 7}, "bits 7"),
        ({"round": -1}, "round -1"),
    ],
)
def test_terms_that_make_no_sense_are_refused(change, message):
    with pytest.raises(SecureAggregationError, match=message):
        context(**change)


@pytest.mark.parametrize("nodes", range(2, 10))
def test_a_threshold_that_could_open_two_sums_of_a_round_is_never_allowed(nodes):
    roster = tuple((f"node-{i}", bytes([i]) * 32) for i in range(nodes))
    for threshold, colluders in itertools.product(range(1, nodes + 1), range(nodes - 1)):
        terms = {"roster": roster, "threshold": threshold, "least_nodes": 1, "colluders": colluders}
        if 2 * threshold > nodes + colluders:
            assert context(**terms).quorum == threshold
        else:
            with pytest.raises(TermsRefused, match="two sums of one round") as caught:
                context(**terms)
            assert caught.value.rule == "threshold"


# Store


def test_a_release_is_made_once_and_can_be_repeated(tmp_path):
    store = ReleaseStore(tmp_path / "releases")
    for _ in range(2):
        store.once(context(), "agreed", b"a")
    for other in (b"b", b""):
        with pytest.raises(SecureAggregationError, match="another request was agreed before"):
            store.once(context(), "agreed", other)
    with pytest.raises(SecureAggregationError, match="another request was agreed before"):
        store.once(context(state=b"m" * 32), "agreed", b"a")
    store.once(context(attempt=2), "agreed", b"b")
    store.once(context(), "revealed", b"a")
    with pytest.raises(SecureAggregationError, match="another request was revealed before"):
        store.once(context(attempt=2), "revealed", b"a")
    files = sorted((tmp_path / "releases").iterdir())
    assert len(files) == 3
    if os.name == "posix":
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_damaged_record_refuses_everything(tmp_path):
    store = ReleaseStore(tmp_path)
    store.once(context(), "agreed", b"a")
    next(tmp_path.iterdir()).write_bytes(b"")
    with pytest.raises(SecureAggregationError, match="before"):
        store.once(context(), "agreed", b"a")


def test_of_many_requests_at_once_one_is_answered(tmp_path):
    def ask(number):
        try:
            ReleaseStore(tmp_path).once(context(), "revealed", bytes([number]))
        except SecureAggregationError:
            return 0
        return 1

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(64))) == 1


def test_the_package_loads_no_cryptography():
    script = "import sys, fedpeft.secagg; print('cryptography' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
