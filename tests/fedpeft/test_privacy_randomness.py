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


def exceedance(threshold):
    """P(|z| > threshold) of the transform, exactly: a sum over the 2^53 radii, each with its share of angles.

    A radius of integer ``k`` is ``sqrt(-2 log(k / 2^53))``; it reaches beyond the threshold when
    ``k < 2^53 exp(-threshold^2 / 2)``, at an angle within ``acos(threshold / radius)`` of an axis.
    """
    reaching = 2.0**53 * np.exp(-(threshold**2) / 2)
    edges = np.unique(np.geomspace(1, reaching + 1, 200_000).astype(np.int64))
    k = edges[:-1].astype(np.float64)
    radius = np.sqrt(np.maximum(-2 * np.log(k / 2.0**53), threshold**2))
    return float(np.sum(np.diff(edges) * 2 * np.arccos(threshold / radius) / np.pi)) / 2.0**53


@pytest.mark.parametrize("threshold", [3.0, 5.0, 5.77, 6.66, 7.0])
def test_the_tail_has_the_probability_of_a_normal(threshold):
    assert exceedance(threshold) == pytest.approx(2 * stats.norm.sf(threshold), rel=3e-3)


def test_at_eight_deviations_the_grid_still_has_mass():
    assert exceedance(8.0) == pytest.approx(2 * stats.norm.sf(8.0), rel=0.1)
    assert 2 * stats.norm.sf(noise.SUPPORT) < 1.1e-17


def test_float32_generators_stop_at_5_77():
    end = float(np.sqrt(48 * np.log(2)))
    assert end < 5.7682 < noise.SUPPORT
    drawn = torch.normal(0.0, 1.0, (2_000_000,), generator=torch.Generator().manual_seed(0))
    assert drawn.abs().max() <= end + 1e-4
    assert exceedance(5.77) > 7e-9


def test_a_source_is_reproducible_only_where_asked():
    key = bytes(range(32))
    first, second = csprng.seeded(key), csprng.seeded(key)
    assert noise.gaussian(70_001, first).tolist() == noise.gaussian(70_001, second).tolist()
    again = noise.gaussian(70_001, first)
    assert not np.intersect1d(again, noise.gaussian(70_001, csprng.seeded(key))).size
    assert abs(np.corrcoef(again, noise.gaussian(70_001, csprng.seeded(key)))[0, 1]) < 0.02


def test_a_seeded_source_continues_one_keystream():
    key, source = os.urandom(32), csprng.seeded(bytes(32))
    parts = np.concatenate([source(5), source(1), source(30)])
    assert parts.tolist() == csprng.keystream(bytes(32), 36).tolist()
    assert csprng.seeded(key)(4).tolist() == csprng.keystream(key, 4).tolist()


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_short_keys_are_refused(length):
    with pytest.raises(PrivacyError, match="give 32"):
        csprng.seeded(bytes(length))


def test_two_nodes_with_one_configured_seed_have_independent_noise():
    def node():
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        return noise.gaussian(200_000)

    one, other = node(), node()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.012
    assert np.linalg.norm(one - other) / np.linalg.norm(one) == pytest.approx(2**0.5, rel=0.02)


def test_blocks_do_not_repeat_or_correlate():
    drawn = noise.gaussian(8 * noise.BLOCK).reshape(8, noise.BLOCK)
    assert len(np.unique(drawn)) >= drawn.size - 3
    across = np.corrcoef(drawn)
    assert np.abs(across[~np.eye(8, dtype=bool)]).max() < 0.035
    halves = np.corrcoef(drawn[:, : noise.BLOCK // 2].ravel(), drawn[:, noise.BLOCK // 2 :].ravel())[0, 1]
    assert abs(halves) < 0.017


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
