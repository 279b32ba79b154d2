"""Noise and sampling: known answers, statistics, independence of every seed."""

from __future__ import annotations

import os
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fedpeft.errors import PrivacyError
from fedpeft.privacy import csprng, noise, sampling


def test_keystream_is_aes_256_ctr():
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    counters = [index.to_bytes(16, "big") for index in range(3)]
    expected = b"".join(block.update(counter) for counter in counters)
    assert csprng.keystream(key, 6).tobytes() == expected


def test_a_nist_vector_confirms_the_cipher():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    assert cipher.update(plain).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"


def test_a_million_draws_are_standard_normal():
    drawn = noise.gaussian(1_000_000)
    assert drawn.dtype == np.float64 and drawn.shape == (1_000_000,)
    assert abs(drawn.mean()) < 5e-3
    assert abs(drawn.std() - 1) < 5e-3
    assert abs(stats.skew(drawn)) < 0.02 and abs(stats.kurtosis(drawn)) < 0.04
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 6e-3
    assert abs(np.corrcoef(drawn[:500_000], drawn[500_000:])[0, 1]) < 9e-3


def test_the_tail_reaches_beyond_float32_generators():
    least, most = np.uint64(0), np.uint64(2**64 - 1)
    assert noise.uniform(np.array([least, most])).tolist() == [2.0**-53, 1.0]
    extreme = noise.box_muller(np.array([least, most], dtype=np.uint64))
    assert abs(extreme).max() == pytest.approx(noise.SUPPORT) and noise.SUPPORT > 8.5
    rare = np.array([2**39, 0], dtype=np.uint64)
    assert 5.77 < abs(noise.box_muller(rare)).max() < noise.SUPPORT


@pytest.mark.parametrize("size", [0, 1, 2, 7, noise.BLOCK - 1, noise.BLOCK + 3])
def test_any_size_is_served(size):
    drawn = noise.gaussian(size)
    assert drawn.shape == (size,) and np.isfinite(drawn).all()
    assert len(np.unique(drawn)) == size


def test_seeds_have_no_influence():
    def seeded():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return noise.gaussian(1000), sampling.poisson(1000, 0.5)

    (first, drawn), (second, again) = seeded(), seeded()
    assert not np.intersect1d(first, second).size
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert drawn.tolist() != again.tolist()


def test_a_fork_shares_no_stream():
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.write(writer, noise.gaussian(8).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 64))
    assert not np.intersect1d(theirs, noise.gaussian(8)).size


def test_inclusion_has_the_stated_rate():
    sizes = np.array([len(sampling.poisson(500, 0.08)) for _ in range(4000)])
    assert abs(sizes.mean() - 40) < 0.5
    assert abs(sizes.var() / (500 * 0.08 * 0.92) - 1) < 0.15


def test_inclusion_is_independent_across_records_and_steps():
    inside = np.zeros((20_000, 6))
    for step in range(len(inside)):
        inside[step, sampling.poisson(6, 0.3)] = 1
    assert np.abs(inside.mean(0) - 0.3).max() < 0.02
    across = np.corrcoef(inside.T)
    assert np.abs(across[~np.eye(6, dtype=bool)]).max() < 0.04
    lagged = [np.corrcoef(inside[:-1, i], inside[1:, i])[0, 1] for i in range(6)]
    assert np.abs(lagged).max() < 0.04


def test_the_batch_size_is_not_fixed_and_may_be_zero():
    sizes = {len(sampling.poisson(3, 0.3)) for _ in range(500)}
    assert sizes == {0, 1, 2, 3}
    assert sampling.poisson(0, 0.5).shape == (0,)
    assert sampling.poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_the_rate_is_never_above_q(monkeypatch):
    for q in (0.1, 1 / 3, 0.08, 1e-9, 1 - 2**-53):
        edge = int(Fraction(q) * 2**64)
        edges = np.array([edge - 1, edge], dtype=np.uint64)
        monkeypatch.setattr(sampling, "words", lambda n, edges=edges: edges)
        assert sampling.poisson(2, q).tolist() == [0]


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, float("nan")])
def test_nonsense_rates_are_refused(q):
    with pytest.raises(PrivacyError, match="sampling probability"):
        sampling.poisson(10, q)
