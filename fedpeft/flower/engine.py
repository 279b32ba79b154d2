"""Nodes on Flower's simulation engine."""

from __future__ import annotations

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedpeft.errors import ConfigError


def run_ray(server_app: ServerApp, client_app: ClientApp, nodes: int, cpus_per_node: int = 1) -> None:
    """Run both apps on Flower's simulation engine; nodes are distinguished by ``partition-id``.

    Raises:
        ConfigError: ray is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise ConfigError("backend 'ray' needs the package ray: pip install 'fedpeft[ray]'")
    from flwr.simulation.run_simulation import _run_simulation  # pyright: ignore[reportPrivateUsage]
    from flwr.supercore.telemetry import EventType

    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        backend_config={
            "client_resources": {"num_cpus": cpus_per_node, "num_gpus": 0.0},
            "init_args": {"include_dashboard": False, "log_to_driver": False},
        },
    )
