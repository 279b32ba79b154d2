"""``fedpeft doctor``: what this machine can do."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "opacus",
    "dp-accounting",
    "flwr",
    "ray",
    "triton",
)

# Bytes per parameter of a frozen base, from the formats' definitions (nf4: block 64, double quantisation).
BYTES_PER_PARAMETER = {"none (float32)": 4.0, "none (bfloat16)": 2.0, "int8": 1.03, "nf4": 0.53}

# Share of the memory that the base may take; the rest is activations, optimiser and the process itself.
BASE_SHARE = 0.6


def register(app: typer.Typer) -> None:
    """Add the ``doctor`` command."""
    app.command("doctor")(doctor)


def doctor(as_json: bool = JSON_OPTION) -> None:
    """Show devices, memory, versions, and which base fits."""
    facts = examine()
    emit(facts, as_json, lambda: _show(facts))


def examine() -> dict[str, Any]:
    """Facts about this machine; sizes in bytes, base sizes in parameters."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices: list[dict[str, Any]] = [
        {"name": "cpu", "kind": platform.processor() or platform.machine(), "memory": memory}
    ]
    devices += _cuda_devices()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bf16_on_cpu": _cpu_has_bf16(),
        "devices": devices,
        "versions": {name: _version(name) for name in PACKAGES},
        "largest_base": {
            device["name"]: {
                kind: int(BASE_SHARE * device["memory"] / size) for kind, size in BYTES_PER_PARAMETER.items()
            }
            for device in devices
        },
    }


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": f"cuda:{index}", "kind": item.name, "memory": item.total_memory}
        for index, item in enumerate(properties)
    ]


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            return "avx512_bf16" in file.read()
    except OSError:
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _show(facts: dict[str, Any]) -> None:
    bf16 = "with" if facts["bf16_on_cpu"] else "without"
    typer.echo(f"Python {facts['python']} on {facts['platform']}, {facts['cores']} cores, {bf16} bf16 on CPU")
    rows = [(d["name"], d["kind"], quantity(d["memory"])) for d in facts["devices"]]
    table("devices", ("device", "kind", "memory"), rows)
    table(
        "versions", ("package", "version"), ((k, v or "not installed") for k, v in facts["versions"].items())
    )
    kinds = list(BYTES_PER_PARAMETER)
    sizes = [
        (device, *(quantity(fits[kind], "") for kind in kinds))
        for device, fits in facts["largest_base"].items()
    ]
    table("largest base, in parameters", ("device", *kinds), sizes)
