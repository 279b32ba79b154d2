"""The GPU kernels in Triton's interpreter, bit for bit against numpy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedpeft_kernels import norms, planes

RNG = np.random.default_rng(0)
SMALL_SIZES = [1, 2, 7, 8, 9, 31, 32, 33, 255, 256, 257, 1000, 4097]
LARGE_SIZES = [65535, 2**16 + 1, 2**20 - 3, 2**20]
SUBNORMAL = np.float32(1e-45)
KINDS = {
    "normal": lambda n: RNG.standard_normal(n),
    "ties": lambda n: RNG.integers(-2, 3, n),
    "zeros": lambda n: RNG.choice([0.0, -0.0], n),
    "equal": lambda n: RNG.choice([0.3, -0.3], n),
    "subnormal": lambda n: RNG.integers(-500, 500, n) * SUBNORMAL,
    "huge": lambda n: RNG.uniform(-3.4e38, 3.4e38, n),
    "all exponents": lambda n: RNG.standard_normal(n) * 2.0 ** RNG.integers(-149, 126, n),
}


def vector(kind, size):
    return KINDS[kind](size).astype(np.float32)


def tensors(size, number):
    """Offsets with sizes of 0 and 1 among them and ends that are no multiples of 8."""
    inner = RNG.integers(0, size + 1, number)
    return np.sort(np.concatenate([[0, size], inner, np.minimum(inner[:2] + 1, size)]))


def same_bits(tensor, array):
    result = tensor.numpy()
    return result.dtype == array.dtype and result.tobytes() == array.tobytes()


def check(gpu, values, offsets, count):
    """Threshold, pack and accumulate on tensors and on arrays."""
    flat, edges = torch.from_numpy(values), torch.from_numpy(offsets)
    cut, expected_cut = gpu.threshold(flat, count), planes.threshold(values, count)
    assert cut == expected_cut
    expected = planes.pack(values, offsets, expected_cut)
    scales = RNG.uniform(0, 1, len(offsets) - 1).astype(np.float32)
    for given_cut in (expected_cut, cut):
        found = gpu.pack(flat, edges, given_cut)
        assert (found.shift, found.size) == (expected.shift, expected.size)
        for name in ("mask", "sign", "counts", "sums"):
            assert same_bits(getattr(found, name), getattr(expected, name)), name
    total = RNG.choice([-0.0, 1.0, 1e-42, -3.0], values.size).astype(np.float32)
    running = torch.from_numpy(total.copy())
    gpu.accumulate(found.mask, found.sign, torch.from_numpy(scales), edges, running)
    planes.accumulate(expected.mask, expected.sign, scales, offsets, total)
    assert same_bits(running, total)


@pytest.fixture
def blocks(monkeypatch, gpu):
    """A function that sets the number of values per program."""
    from fedpeft_kernels.gpu import adding, packing, select

    def put(size):
        for module in (adding, packing, select):
            monkeypatch.setattr(module, "BLOCK", size)

    return put


@pytest.mark.parametrize("size", SMALL_SIZES)
def test_every_size(gpu, size):
    check(gpu, vector("normal", size), tensors(size, 3), -(-size // 3))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_values(gpu, blocks, kind):
    blocks(256)
    values, offsets = vector(kind, 500), tensors(500, 2)
    for count in (0, 1, 200, 500):
        check(gpu, values, offsets, count)


@pytest.mark.parametrize("size", LARGE_SIZES)
def test_large_vectors(gpu, blocks, size):
    blocks(2**18)
    check(gpu, vector("normal", size), tensors(size, 9), size // 20)


def test_ties_across_blocks_as_launched_on_a_gpu(gpu):
    check(gpu, vector("ties", 30_001), tensors(30_001, 3), 7_000)


def test_many_tensors_in_one_block(gpu):
    check(gpu, vector("normal", 100), np.arange(101), 50)


VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]), st.floats(width=32, allow_nan=False, allow_infinity=False)
)


@settings(max_examples=10, deadline=None)
@given(values=arrays(np.float32, st.integers(1, 100), elements=VALUES), data=st.data())
def test_small_vectors_in_small_blocks(gpu, values, data):
    from fedpeft_kernels.gpu import adding, packing, select

    with pytest.MonkeyPatch.context() as patch:
        for module in (adding, packing, select):
            patch.setattr(module, "BLOCK", 64)
        check(gpu, values, tensors(values.size, 2), data.draw(st.integers(0, values.size)))


def test_an_empty_vector(gpu):
    empty, edges = torch.zeros(0), torch.zeros(1, dtype=torch.int64)
    packed = gpu.pack(empty, edges, gpu.threshold(empty, 0)).host()
    assert packed.mask.size == packed.sums.size == 0
    gpu.accumulate(torch.from_numpy(packed.mask), torch.from_numpy(packed.sign), torch.zeros(0), edges, empty)


def test_the_threshold_of_the_gpu_spares_pack_a_pass(gpu, monkeypatch):
    from fedpeft_kernels.gpu import packing

    monkeypatch.setattr(packing, "_survey", None)
    values = torch.from_numpy(vector("normal", 1000))
    gpu.pack(values, torch.tensor([0, 1000]), gpu.threshold(values, 50))


def test_unmarked_entries_keep_their_bits(gpu):
    total = torch.tensor([float("nan"), -0.0, 1.0])
    before = total.clone().view(torch.int32)
    marks = torch.tensor([4], dtype=torch.uint8)
    gpu.accumulate(marks, torch.zeros_like(marks), torch.ones(1), torch.tensor([0, 3]), total)
    assert torch.equal(total.view(torch.int32)[:2], before[:2]) and total[2] == 2


def test_refuses_what_does_not_fit(gpu):
    values = torch.ones(9)
    with pytest.raises(ValueError, match="10 of 9"):
        gpu.threshold(values, 10)
    with pytest.raises(ValueError, match="float64"):
        gpu.threshold(values.double(), 1)
    with pytest.raises(ValueError, match="contiguous"):
        gpu.pack(values[::2], torch.tensor([0, 5]), planes.Threshold(1, 1))
    byte = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="do not fit 9"):
        gpu.accumulate(byte, byte, torch.ones(1), torch.tensor([0, 9]), values)


SHAPES = [(1, 1, 1, 1), (3, 37, 200, 8), (2, 5, 8, 130), (4, 64, 33, 17), (2, 3, 128, 16), (2, 100, 20, 20)]


def whole_numbers(*shape):
    return torch.from_numpy(RNG.integers(-3, 4, shape).astype(np.float32))


def naive_norm(inputs, outputs):
    return float(sum(torch.outer(o, i) for i, o in zip(inputs, outputs, strict=True)).square().sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_norms(gpu, shape):
    examples, tokens, columns, rows = shape
    inputs, outputs = whole_numbers(examples, tokens, columns), whole_numbers(examples, tokens, rows)
    naive = [naive_norm(*pair) for pair in zip(inputs, outputs, strict=True)]
    assert norms.squared_norms(inputs, outputs).tolist() == naive
    assert gpu.squared_norms(inputs, outputs).tolist() == naive


def test_squared_norms_of_real_numbers(gpu):
    inputs, outputs = (torch.from_numpy(RNG.standard_normal((3, 50, n)).astype(np.float32)) for n in (96, 8))
    exact = torch.einsum("btm,btn->bmn", outputs.double(), inputs.double()).square().sum((1, 2))
    for given_inputs in (inputs, inputs.transpose(1, 2).contiguous().transpose(1, 2)):
        for module in (norms, gpu):
            found = module.squared_norms(given_inputs, outputs)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_squared_norms_without_tokens_or_examples(gpu):
    for module in (norms, gpu):
        assert module.squared_norms(torch.zeros(2, 0, 3), torch.zeros(2, 0, 4)).tolist() == [0, 0]
        assert module.squared_norms(torch.zeros(0, 5, 3), torch.zeros(0, 5, 4)).tolist() == []
        with pytest.raises(ValueError, match=r"\(B, T, n\)"):
            module.squared_norms(torch.zeros(2, 3, 3), torch.zeros(2, 4, 4))


def test_the_package_needs_neither_torch_nor_triton():
    code = "import sys, fedpeft_kernels, fedpeft_kernels.planes, fedpeft_kernels.gpu as gpu; "
    code += "gpu.available('cpu'); print('torch' in sys.modules, 'triton' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present: the benchmark would run")
def test_the_benchmark_says_that_it_needs_a_gpu():
    script = Path(__file__).parents[2] / "kernels" / "benchmarks" / "bandwidth.py"
    shown = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=True)
    assert shown.stdout.count("\n") == 1 and "needs CUDA" in shown.stdout


def test_there_are_no_kernels_for_the_cpu_and_no_unknown_names():
    from fedpeft_kernels import gpu

    assert not gpu.available("cpu") and not gpu.available(torch.device("cpu"))
    with pytest.raises(AttributeError, match="nothing"):
        _ = gpu.nothing
