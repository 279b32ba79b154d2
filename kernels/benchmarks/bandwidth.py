"""How fast the GPU kernels move bytes, against a plain copy of as many bytes on the same card.

    python kernels/benchmarks/bandwidth.py [--json] [--smallest 24] [--largest 28] [--density 0.05]

Bytes are those an ideal kernel moves, each once: ``4 N`` for threshold, ``4 N + N / 4`` for pack,
``8 N + N / 4`` for accumulate, inputs and outputs for squared norms. Accumulate skips runs of eight values
without a mark, so that its ratio can pass 1. A copy of ``B`` bytes reads half and writes half of them.
Times are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

import torch

from fedpeft_kernels import gpu

Work = tuple[str, int, Callable[[], object]]
TENSORS = 224
COLUMNS, RANK, EXAMPLES = 4096, 16, 16


@dataclass(frozen=True)
class Row:
    """One kernel at one size: time in ms, rates in GB/s (10**9 bytes)."""

    kernel: str
    values: int
    bytes: int
    milliseconds: float
    rate: float
    copy_rate: float
    ratio: float


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of one call, after three calls that compile and warm up."""
    times: list[float] = []
    for turn in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end))
    return median(times)


def works(size: int, density: float) -> Iterator[Work]:
    """Name, ideal bytes and call of each kernel for ``size`` values."""
    random = torch.Generator("cuda").manual_seed(0)
    values = torch.randn(size, device="cuda", generator=random)
    offsets = torch.linspace(0, size, TENSORS + 1, dtype=torch.float64, device="cuda").long()
    count = round(density * size)
    cut = gpu.threshold(values, count)
    yield "threshold", 4 * size, lambda: gpu.threshold(values, count)
    yield "pack", 4 * size + size // 4, lambda: gpu.pack(values, offsets, cut)
    planes, scales = gpu.pack(values, offsets, cut), torch.ones(TENSORS, device="cuda")
    yield (
        "accumulate",
        8 * size + size // 4,
        lambda: gpu.accumulate(planes.mask, planes.sign, scales, offsets, values),
    )
    inputs = values.view(EXAMPLES, -1, COLUMNS)
    outputs = torch.randn((*inputs.shape[:2], RANK), device="cuda", generator=random)
    moved = 4 * (inputs.numel() + outputs.numel())
    yield "squared_norms", moved, lambda: gpu.squared_norms(inputs, outputs)


def measure(size: int, density: float, repeats: int) -> Iterator[Row]:
    """Time each kernel and a copy of as many bytes."""
    for name, moved, work in works(size, density):
        source = torch.zeros(moved // 8, device="cuda")
        target = torch.empty_like(source)
        copy = timed(lambda source=source, target=target: target.copy_(source), repeats)
        taken = timed(work, repeats)
        rate, copy_rate = (moved / 1e6 / time for time in (taken, copy))
        yield Row(name, size, moved, taken, rate, copy_rate, copy / taken)


def machine() -> dict[str, str]:
    """What the numbers were measured on, and when."""
    return {
        "device": torch.cuda.get_device_name(),
        "host": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": str(torch.version.cuda),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(rows: list[Row]) -> str:
    """The rows as text."""
    head = f"{'kernel':<14}{'values':>12}{'ms':>10}{'GB/s':>9}{'copy GB/s':>11}{'ratio':>7}"
    lines = [
        f"{row.kernel:<14}{row.values:>12}{row.milliseconds:>10.3f}{row.rate:>9.0f}"
        f"{row.copy_rate:>11.0f}{row.ratio:>7.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Print a table, or one JSON object with ``--json``; without a GPU one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smallest", type=int, default=24, help="log2 of the smallest number of values")
    parser.add_argument("--largest", type=int, default=28, help="log2 of the largest number of values")
    parser.add_argument("--density", type=float, default=0.05, help="share of values that are kept")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per median")
    options = parser.parse_args()
    if not gpu.available("cuda"):
        print("no measurement: this needs CUDA (compute capability 8.0 or higher) and Triton")
        return
    sizes = [1 << power for power in range(options.smallest, options.largest + 1)]
    rows = [row for size in sizes for row in measure(size, options.density, options.repeats)]
    about = machine()
    if options.json:
        print(json.dumps({**about, "density": options.density, "rows": [asdict(row) for row in rows]}))
    else:
        print("\n".join(f"{name}: {value}" for name, value in about.items()), table(rows), sep="\n")


if __name__ == "__main__":
    main()
