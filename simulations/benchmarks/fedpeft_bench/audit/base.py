"""The base of the audit's benchmarks: twice as wide as the embedded one, from the same recipe and text."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedpeft_simulations.embedded.recipe import Shape, build

FOLDER = Path("runs/bases/audit256")
"""Where the benchmarks keep it."""

SHAPE = Shape(width=256, hidden=768, layers=4, heads=8)
STEPS, RATE = 400, 2e-3


def bench_base(folder: Path = FOLDER, report: Callable[[str], None] | None = None) -> str:
    """The bench base as ``base.model`` takes it; trained once (ten minutes of one core) and then reused.

    Llama of width 256 and four layers, vocabulary 2,048. An interrupted training leaves nothing behind.

    Args:
        folder: where it lies or shall lie.
        report: called with a line of progress now and then.
    """
    if not (folder / "model.safetensors").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            made = Path(work) / "base"
            build(made, steps=STEPS, progress=report, shape=SHAPE, rate=RATE)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    return str(folder)
