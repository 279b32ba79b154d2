"""The GPU kernels on CPU tensors, in Triton's interpreter, which tests/conftest.py has chosen."""

import pytest
import torch


@pytest.fixture(scope="session")
def gpu():
    """The package of GPU kernels, for tensors of the CPU."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is present: make test-gpu runs the kernels on it")
    language = pytest.importorskip("triton.language", reason="triton is not installed")
    triton = pytest.importorskip("triton")
    if isinstance(language.cumsum, triton.JITFunction):
        pytest.fail("Triton was imported before its interpreter was chosen: set TRITON_INTERPRET=1")
    from fedpeft_kernels import gpu

    return gpu
