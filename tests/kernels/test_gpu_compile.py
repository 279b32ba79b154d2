"""The GPU kernels compile to machine code, which needs no GPU and which the interpreter does not show."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

POINTERS = {
    "*i32": ["raw", "first", "last", "tied", "largest"],
    "*i64": ["state", "bins", "offsets", "before", "counts", "sums"],
    "*u8": ["mask", "sign"],
    "*fp32": ["scales", "total", "wide", "narrow", "parts"],
}
TYPES = {name: kind for kind, names in POINTERS.items() for name in names}


def variants(select, packing, adding, norms):
    """Kernel, its constants and warps."""
    for high, low in [(31, 25), (7, 0)]:
        digit = {"HIGH": high, "LOW": low, "BINS": 1 << (high - low)}
        yield select._count, {**digit, "BLOCK": select.BLOCK}, 8
        yield select._choose, {"LOW": low, "BINS": digit["BINS"]}, 1
    yield packing._look, {"BLOCK": packing.BLOCK}, 8
    for ranked in (False, True):
        yield packing._pack, {"RANKED": ranked, "BLOCK": packing.BLOCK}, 8
    yield adding._add, {"BLOCK": adding.BLOCK}, 8
    yield norms._square, {"ROWS": 16, "COLUMNS": 128, "TOKENS": 32}, 4


def compile_all(capability, size_type):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fedpeft_kernels.gpu import adding, norms, packing, select

    for kernel, constants, warps in variants(select, packing, adding, norms):
        kinds = {"size": size_type, "ties": size_type, **TYPES}
        signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        print(kernel.__name__, capability, len(made.asm["cubin"]))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(capability)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == 2 * 9


if __name__ == "__main__":
    for size_type in ("i32", "i64"):
        compile_all(int(sys.argv[1]), size_type)
