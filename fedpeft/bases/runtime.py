"""Devices, compute types and the settings that must stand before torch is imported."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.config.models import DType
from fedpeft.errors import BaseModelError

if TYPE_CHECKING:
    import torch


def prepare() -> None:
    """Set the environment that torch and bitsandbytes read at import; harmless when called late.

    Spinning OpenMP workers make torch ten times slower as soon as cores are shared; bitsandbytes logs a
    failed search for an optional kernel package at import.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def give_back_memory() -> None:
    """Return what loading a base has freed to the system (Linux with glibc; elsewhere nothing happens).

    Quantising reads every matrix in full first; the allocator would keep a part of that for good.
    """
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


@dataclass(frozen=True)
class Device:
    """One device that can hold a base.

    Attributes:
        name: as in ``base.device``: cpu, cuda:0, …
        model: what the vendor calls it.
        memory: bytes in all.
        free: bytes free now.
        bfloat16: whether it has bfloat16 instructions; without them the type is far slower than float32.
        cores: usable processor cores, or multiprocessors of a GPU.
    """

    name: str
    model: str
    memory: int
    free: int
    bfloat16: bool
    cores: int


def describe_devices() -> list[Device]:
    """The processor and each CUDA GPU of this machine; imports torch."""
    prepare()
    import torch

    return [_cpu(), *(_gpu(index) for index in range(torch.cuda.device_count()))]


def choose_device(wanted: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        BaseModelError: it is not the name of a device, or this machine lacks it.
    """
    import torch

    if wanted == "auto":
        wanted = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise BaseModelError(f"base.device {wanted!r} is not known; use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BaseModelError(
            f"base.device {wanted!r} is not here: torch sees {count} CUDA device(s); use 'auto'"
        )
    return torch.device("cuda", index)


def choose_dtype(wanted: DType, device: torch.device) -> torch.dtype:
    """The compute type: as wanted, or for ``auto`` float32 on processors and bfloat16 where a GPU has it."""
    import torch

    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
        return torch.bfloat16
    return torch.float32


def _cpu() -> Device:
    facts = _proc("/proc/cpuinfo")
    memory = _proc("/proc/meminfo")
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = _kibibytes(memory.get("MemTotal")) or pages
    affinity = getattr(os, "sched_getaffinity", None)
    return Device(
        name="cpu",
        model=facts.get("model name", "unknown processor"),
        memory=total,
        free=_kibibytes(memory.get("MemAvailable")) or total,
        bfloat16="avx512_bf16" in facts.get("flags", "").split()
        or "bf16" in facts.get("Features", "").split(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
    )


def _gpu(index: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Device(
        name=f"cuda:{index}",
        model=properties.name,
        memory=total,
        free=free,
        bfloat16=properties.major >= 8,
        cores=properties.multi_processor_count,
    )


def _proc(path: str) -> dict[str, str]:
    """The first block of a ``key : value`` file of Linux; empty elsewhere."""
    if not Path(path).exists():
        return {}
    block = Path(path).read_text(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _kibibytes(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0
