"""`fedpeft_kernels.planes` and `fedpeft_kernels.norms` on a GPU, in Triton, bit for bit.

The functions have the names, arguments and meaning of the CPU versions. They take and return torch tensors of
one device, so that only `Planes.host` brings data to the host. Triton is imported when a function is first
asked for; `available` needs neither it nor a GPU. With ``TRITON_INTERPRET=1`` in the environment before
Triton's first import the kernels run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from fedpeft_kernels.lazy import lazy

if TYPE_CHECKING:
    import torch

    from fedpeft_kernels.gpu.adding import accumulate
    from fedpeft_kernels.gpu.norms import squared_norms
    from fedpeft_kernels.gpu.packing import Planes, pack
    from fedpeft_kernels.gpu.select import threshold

__all__ = ["Planes", "accumulate", "available", "pack", "squared_norms", "threshold"]


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


__getattr__ = lazy(
    __name__,
    {
        "Planes": "packing",
        "accumulate": "adding",
        "pack": "packing",
        "squared_norms": "norms",
        "threshold": "select",
    },
)
