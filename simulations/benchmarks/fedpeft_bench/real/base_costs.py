"""What a quantised base costs beside the plain one: resident memory, processor time of a step, loss.

Each is measured in a process of its own: ``python -m fedpeft_bench.real.base_costs WORK none`` prints JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedpeft.errors import RunError
from fedpeft.rng import stream
from fedpeft_bench.real.prepare import Material
from fedpeft_bench.real.rows import settings

STEPS = 6
RECORDS = 64
COLUMNS = ("quantisation", "base, resident MiB", "processor s a step", "loss of the base")


def compare(work: Path, report: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Figures of the plain and of the nf4 base, and nf4 as a multiple of the plain one.

    Raises:
        RunError: a measuring process failed.
    """
    figures: dict[str, dict[str, float]] = {}
    for quantisation in ("none", "nf4"):
        report(f"base_costs: {quantisation}")
        command = [sys.executable, "-m", "fedpeft_bench.real.base_costs", str(work), quantisation]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"measuring the {quantisation} base failed: {done.stderr.strip()[-300:]}")
        figures[quantisation] = json.loads(done.stdout)
    plain, small = figures["none"], figures["nf4"]
    return {**figures, "nf4 / none": {key: small[key] / plain[key] for key in plain}}


def measure(work: Path, quantisation: str) -> dict[str, float]:
    """Load, evaluate and train a few steps in this process."""
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]  (code is no part of the base's memory)
    import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]
    import torch

    from fedpeft.adapters import attach
    from fedpeft.bases import load_base
    from fedpeft.bases.load import load_tokenizer
    from fedpeft.config import load_config
    from fedpeft.data import read_records, tokenise
    from fedpeft.evaluation.metrics import evaluate
    from fedpeft.training import LocalPlan, train_local

    material = Material.below(work)
    config = load_config(overrides={**settings(material), "base.quantisation": quantisation})
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # what torch itself takes at its first product
    load_tokenizer(config.base)  # nor is the code of tokenizers
    before = _resident()
    base = load_base(config.base)
    for tensor in base.model.parameters():
        tensor.sum()  # a file that is mapped is in memory when it has been read
    resident = _resident() - before
    records = read_records(material.test, config.data)[:RECORDS]
    labels = sorted({record.completion for record in records})
    examples = tokenise(records, base.tokenizer, config.data, labels=labels)
    attached = attach(base, config.adapter, 0)
    loss = evaluate(attached, examples, labels, base.tokenizer).loss
    plan = replace(LocalPlan.of(config.federation, 1), steps=STEPS)
    started = time.process_time()
    train_local(attached, examples, plan, stream(0, 1, "", "batches"))
    return {"base_mib": resident / 2**20, "step_cpu_s": (time.process_time() - started) / STEPS, "loss": loss}


def _resident() -> int:
    """Bytes of this process in memory, given back ones not counted (Linux)."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cells(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    """The figures as text, in the order of `COLUMNS`."""
    return [
        [name, f"{row['base_mib']:.2f}", f"{row['step_cpu_s']:.2f}", f"{row['loss']:.4f}"]
        for name, row in figures.items()
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
