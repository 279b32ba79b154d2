"""The compiled kernels bit for bit against numpy; needs CUDA: ``make test-gpu``."""

import numpy as np
import pytest
import torch

from fedpeft_kernels import gpu, norms, planes

pytestmark = pytest.mark.gpu
SIZES = [1, 7, 9, 257, 1000, 4097, 65535, 2**20 - 3, 2**20, 5_000_011]
KINDS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "ties": lambda rng, n: rng.integers(-2, 3, n),
    "zeros": lambda rng, n: np.zeros(n),
    "equal": lambda rng, n: rng.choice([0.3, -0.3], n),
    "subnormal": lambda rng, n: rng.integers(-500, 500, n) * np.float32(1e-45),
    "all exponents": lambda rng, n: rng.standard_normal(n) * 2.0 ** rng.integers(-149, 126, n),
}


def on_card(array):
    return torch.from_numpy(array).cuda()


def same_bits(tensor, array):
    result = tensor.cpu().numpy()
    return result.dtype == array.dtype and result.tobytes() == array.tobytes()


def check(values, offsets, count):
    flat, edges = on_card(values), on_card(offsets)
    cut, expected_cut = gpu.threshold(flat, count), planes.threshold(values, count)
    assert cut == expected_cut
    expected = planes.pack(values, offsets, expected_cut)
    scales = np.random.default_rng(1).uniform(0, 1, len(offsets) - 1).astype(np.float32)
    for given_cut in (expected_cut, cut):
        found = gpu.pack(flat, edges, given_cut)
        assert found.mask.is_cuda and (found.shift, found.size) == (expected.shift, expected.size)
        for name in ("mask", "sign", "counts", "sums"):
            assert same_bits(getattr(found, name), getattr(expected, name)), name
    total = np.random.default_rng(2).choice([-0.0, 1.0, 1e-42, -3.0], values.size).astype(np.float32)
    running = on_card(total)
    gpu.accumulate(found.mask, found.sign, on_card(scales), edges, running)
    planes.accumulate(expected.mask, expected.sign, scales, offsets, total)
    assert same_bits(running, total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_threshold_pack_and_accumulate(size, kind):
    assert gpu.available("cuda")
    rng = np.random.default_rng(size)
    values = KINDS[kind](rng, size).astype(np.float32)
    offsets = np.sort(np.concatenate([[0, size], rng.integers(0, size + 1, 30)]))
    for count in (0, 1, size // 20, size // 2, size):
        check(values, offsets, count)


def test_a_tensor_per_value():
    check(np.random.default_rng(0).standard_normal(10_000).astype(np.float32), np.arange(10_001), 5_000)


def test_places_beyond_32_bits():
    size = 2**31 + 9
    if torch.cuda.mem_get_info()[0] < 4 * 4 * size:
        pytest.skip("needs 32 GiB of free GPU memory")
    values = torch.zeros(size, device="cuda")
    values[-3:] = torch.tensor([1.0, -2.0, 1.0], device="cuda")
    offsets = torch.tensor([0, size - 2, size], device="cuda")
    cut = gpu.threshold(values, 2)
    assert (cut.bits, cut.ties, cut.equal) == (0x3F800000, 1, 2)
    packed = gpu.pack(values, offsets, cut)
    assert packed.mask.count_nonzero() == packed.sign.count_nonzero() == 1
    assert (int(packed.mask[-1]), int(packed.sign[-1])) == (0, 0)
    assert (int(packed.mask[-2]), int(packed.sign[-2])) == (0b11000000, 0b10000000)
    assert packed.counts.tolist() == [1, 1] and packed.sums.tolist() == [1 << 29, 1 << 30]
    gpu.accumulate(packed.mask, packed.sign, torch.tensor([3.0, 5.0], device="cuda"), offsets, values)
    assert values[-3:].tolist() == [4.0, -7.0, 1.0]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 37, 200, 8), (2, 5, 8, 130), (4, 512, 4096, 16)])
def test_squared_norms(shape):
    examples, tokens, columns, rows = shape
    rng = np.random.default_rng(tokens)
    inputs, outputs = (
        torch.from_numpy(rng.integers(-1, 2, (examples, tokens, n)).astype(np.float32))
        for n in (columns, rows)
    )
    exact = torch.einsum("btm,btn->bmn", outputs.double(), inputs.double()).square().sum((1, 2))
    found = gpu.squared_norms(inputs.cuda(), outputs.cuda()).cpu()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    if exact.max() < 2**24:
        assert torch.equal(found, norms.squared_norms(inputs, outputs))


def test_two_runs_give_the_same_bits():
    values = torch.randn(1 << 22, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    offsets = torch.arange(0, (1 << 22) + 1, 1 << 12, device="cuda")
    runs = [gpu.pack(values, offsets, gpu.threshold(values, 200_000)) for _ in range(3)]
    for name in ("mask", "sign", "counts", "sums"):
        assert all(torch.equal(getattr(run, name), getattr(runs[0], name)) for run in runs)
