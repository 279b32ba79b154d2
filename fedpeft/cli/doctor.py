"""``fedpeft doctor``: what this machine can do."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
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
    from fedpeft.bases import describe_devices

    devices = describe_devices()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": devices[0].cores,
        "bf16_on_cpu": devices[0].bfloat16,
        "devices": [asdict(device) for device in devices],
        "versions": {name: _version(name) for name in PACKAGES},
        "largest_base": {
            device.name: {
                kind: int(BASE_SHARE * device.memory / size) for kind, size in BYTES_PER_PARAMETER.items()
            }
            for device in devices
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _show(facts: dict[str, Any]) -> None:
    bf16 = "with" if facts["bf16_on_cpu"] else "without"
    typer.echo(f"Python {facts['python']} on {facts['platform']}, {facts['cores']} cores, {bf16} bf16 on CPU")
    rows = [(d["name"], d["model"], quantity(d["memory"])) for d in facts["devices"]]
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
