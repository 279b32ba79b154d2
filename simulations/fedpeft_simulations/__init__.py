"""Whole federations on one machine: organisations, runner, baselines.

The names of `__all__` are the public interface of the package and are loaded when they are first used;
`docs/api` has an example of each.
"""

from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    from fedpeft_simulations.event_stream import Simulation, simulate
    from fedpeft_simulations.federation_lab import FederationLab
    from fedpeft_simulations.run_tables import Run

__all__ = ["FederationLab", "Run", "Simulation", "simulate"]

__getattr__ = lazy(
    __name__,
    {
        "FederationLab": "federation_lab",
        "Run": "run_tables",
        **dict.fromkeys(("Simulation", "simulate"), "event_stream"),
    },
)


def __dir__() -> list[str]:
    return __all__
