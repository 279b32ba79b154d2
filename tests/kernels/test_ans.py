"""Range ANS: equal to a naive twin, near the entropy, one stream per sequence, hostile bytes refused."""

import numpy as np
import pytest

from fedpeft_kernels import ans

SIZES = (1, 2, 3, 100, 4096, 8191, 8192, 20001)


def drawn(size, levels, seed=0):
    rng = np.random.default_rng(seed)
    symbols = rng.choice(levels, size, p=rng.dirichlet(np.ones(levels)))
    return symbols, np.bincount(symbols, minlength=levels).astype(np.int64)


def naive(symbols, counts):
    """One symbol after the other, from the last to the first, in Python's whole numbers."""
    size = len(symbols)
    lanes = max(1, size // 4096)
    low = size * (2**30 // size)
    starts = [sum(counts[:level]) for level in range(len(counts))]
    states, words = [low] * lanes, []
    for place in reversed(range(size)):
        often, lane = counts[symbols[place]], place % lanes
        if states[lane] >= often * (low // size) * 2**32:
            words.append((place // lanes, lane, states[lane] % 2**32))
            states[lane] //= 2**32
        whole, rest = divmod(states[lane], often)
        states[lane] = whole * size + starts[symbols[place]] + rest
    head = b"".join(state.to_bytes(8, "little") for state in states)
    return head + b"".join(word.to_bytes(4, "little") for _, _, word in sorted(words))


def bound(counts):
    """Bytes of the symbols' empirical entropy."""
    some = counts[counts > 0]
    return float(-(some * np.log2(some / some.sum())).sum()) / 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 9, 255])
def test_streams_are_those_of_the_naive_twin_and_are_read_back(size, levels):
    symbols, counts = drawn(size, levels)
    stream = ans.encode(symbols, counts)
    assert stream == naive(symbols.tolist(), counts.tolist())
    assert np.array_equal(ans.decode(stream, counts), symbols)
    assert len(stream) <= ans.max_bytes(size, levels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 9, 255])
def test_a_lane_takes_nine_bytes_beside_the_entropy(size, levels):
    symbols, counts = drawn(size, levels)
    assert len(ans.encode(symbols, counts)) <= bound(counts) + 9 * ans.lanes(size)


def test_uniform_symbols_fill_the_longest_stream_that_is_allowed():
    symbols = np.tile(np.arange(256), 64)
    counts = np.bincount(symbols).astype(np.int64)
    assert len(ans.encode(symbols, counts)) <= ans.max_bytes(symbols.size, 256)


def test_of_streams_that_are_changed_none_is_read_as_the_same_symbols():
    symbols, counts = drawn(300, 5)
    stream = ans.encode(symbols, counts)
    for place in range(8 * len(stream)):
        changed = bytearray(stream)
        changed[place // 8] ^= 1 << place % 8
        decoded = ans.decode(bytes(changed), counts)
        if decoded is not None:
            again = np.bincount(decoded, minlength=5).astype(np.int64)
            assert not np.array_equal(decoded, symbols)
            assert not np.array_equal(again, counts) or ans.encode(decoded, counts) == bytes(changed)


@pytest.mark.parametrize("cut", [b"", b"\0" * 3, b"\0" * 7, b"\xff" * 8, b"\0" * 8])
def test_a_state_out_of_range_is_refused(cut):
    assert ans.decode(cut, np.array([3, 4])) is None


def test_a_stream_that_ends_early_or_late_is_refused():
    symbols, counts = drawn(300, 5)
    stream = ans.encode(symbols, counts)
    for length in range(len(stream)):
        assert ans.decode(stream[:length], counts) is None
    for more in (b"\0", b"\0" * 4, stream):
        assert ans.decode(stream + more, counts) is None
