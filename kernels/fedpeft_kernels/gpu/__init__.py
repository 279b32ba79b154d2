"""`fedpeft_kernels.planes` and `fedpeft_kernels.norms` on a GPU, in Triton, bit for bit.

The functions have the names, arguments and meaning of the CPU versions. They take and return torch tensors of
one device, so that only `Planes.host` brings data to the host. Triton is imported when a function is first
asked for; `available` needs neither it nor a GPU. With ``TRITON_INTERPRET=1`` in the environment before
Triton's first import the kernels run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fedpeft_kernels.gpu.adding import accumulate
    from fedpeft_kernels.gpu.norms import squared_norms
    from fedpeft_kernels.gpu.packing import Planes, pack
    from fedpeft_kernels.gpu.select import threshold

__all__ = ["Planes", "accumulate", "available", "pack", "squared_norms", "threshold"]

_HOMES = {
    "Planes": "packing",
    "accumulate": "adding",
    "pack": "packing",
    "squared_norms": "norms",
    "threshold": "select",
}


def available(device: torch.device | str) -> bool:
    """Whether the kernels run on this device: CUDA, compute capability 8.0 or higher, Triton installed."""
    if not str(device).startswith("cuda") or find_spec("triton") is None:
        return False
    import torch

    return (
        torch.version.cuda is not None
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
