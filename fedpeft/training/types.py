"""What training needs from an attached adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fedpeft.exchange.layout import Layout

if TYPE_CHECKING:
    from torch import nn


class Trainable(Protocol):
    """A model with an agreed set of trainable parameters; `fedpeft.adapters.Attached` is one."""

    @property
    def model(self) -> Any:
        """The model that carries the adapter."""
        ...

    @property
    def layout(self) -> Layout:
        """Order of the trainable parameters in the flat vector."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trainable parameters by their names in the layout."""
        ...
