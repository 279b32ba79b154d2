"""``fedpeft doctor``: what this machine can do."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from fedpeft.cli.output import JSON_OPTION, emit, quantity, table
from fedpeft.cli.scenario import SET
from fedpeft.errors import ConfigError

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

# Bytes of a parameter of a frozen base that is not quantised.
PLAIN = {"none (float32)": 4.0, "none (bfloat16)": 2.0}

# Share of the memory that the base may take; the rest is activations, optimiser and the process itself.
BASE_SHARE = 0.6


def register(app: typer.Typer) -> None:
    """Add the ``doctor`` command."""
    app.command("doctor")(doctor)


def doctor(
    plan: Path | None = typer.Option(
        None, "--plan", help="A scenario: what a node needs for it, memory by part and time of a step."
    ),
    set_: list[str] = SET,
    as_json: bool = JSON_OPTION,
) -> None:
    """Show devices, memory, versions, and which base fits; or what a node needs for a plan."""
    if plan is not None:
        facts = examine_plan(str(plan), set_)
        emit(facts, as_json, lambda: _show_plan(facts))
        return
    if set_:
        raise ConfigError("--set changes settings of a plan; give --plan too")
    facts = examine()
    emit(facts, as_json, lambda: _show(facts))


def examine_plan(scenario: str, overrides: list[str]) -> dict[str, Any]:
    """What one node needs for a scenario; sizes in bytes, times in seconds on the first fitting device."""
    from fedpeft.bases import describe_devices
    from fedpeft.config import load_config
    from fedpeft.cost_estimate import estimate, measure_flops

    config = load_config(Path(scenario), overrides)
    needs, wanted = estimate(config), config.base.device
    here = [
        device
        for device in describe_devices()
        if wanted == "auto" or device.name == wanted or device.name.startswith(f"{wanted}:")
    ]
    speed = measure_flops(config.base) if here else None
    steps = config.federation.rounds * config.federation.local_steps
    step = None if speed is None else needs.step_flops / speed
    return {
        **asdict(needs),
        "memory": needs.memory,
        "device": here[-1].name if here else None,
        "device_memory": here[-1].memory if here else None,
        "fits": needs.memory <= here[-1].memory if here else None,
        "step_s": step,
        "training_s": None if step is None else step * steps,
        "steps": steps,
    }


def _show_plan(facts: dict[str, Any]) -> None:
    parts = {
        "frozen base": facts["base_bytes"],
        "adapter, gradient, optimiser": facts["adapter_bytes"],
        "gradients of single records": facts["per_example_bytes"],
        "activations and logits": facts["activation_bytes"],
        "together": facts["memory"],
    }
    table("memory of one node (estimate)", ("part", "size"), ((k, quantity(v)) for k, v in parts.items()))
    typer.echo(f"{facts['parameters']:,} parameters, {facts['trainable']:,} of them trained and exchanged")
    typer.echo(facts["coverage"])
    typer.echo(f"{facts['step_flops'] / 1e12:.2f} TFLOP a step, {facts['steps']} steps at each node")
    if facts["device"] is None:
        typer.echo("the device that the plan names is not on this machine: no time is estimated")
        return
    verdict = "fits" if facts["fits"] else "does not fit"
    typer.echo(
        f"{facts['device']} ({quantity(facts['device_memory'])}): {verdict}; "
        f"about {facts['step_s']:.1f} s a step, {facts['training_s'] / 60:.0f} min of training at each node"
    )


def examine() -> dict[str, Any]:
    """Facts about this machine; sizes in bytes, base sizes in parameters."""
    from fedpeft.bases import describe_devices
    from fedpeft.cost_estimate import QUANTISED

    devices, sizes = describe_devices(), {**PLAIN, **QUANTISED}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": devices[0].cores,
        "bf16_on_cpu": devices[0].bfloat16,
        "devices": [asdict(device) for device in devices],
        "versions": {name: _version(name) for name in PACKAGES},
        "largest_base": {
            device.name: {kind: int(BASE_SHARE * device.memory / size) for kind, size in sizes.items()}
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
    kinds = list(next(iter(facts["largest_base"].values())))
    sizes = [
        (device, *(quantity(fits[kind], "") for kind in kinds))
        for device, fits in facts["largest_base"].items()
    ]
    table("largest base, in parameters", ("device", *kinds), sizes)
