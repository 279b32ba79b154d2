"""What settings may name, by kind; each can be extended by other packages (docs/plugins.md).

Only names and places stand here, so that checking a setting imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from fedpeft.errors import ExchangeError
from fedpeft.registry import Registry

if TYPE_CHECKING:
    from fedpeft.exchange.codecs.base import Codec

FOREIGN_WIRE_IDS = range(64, 255)
"""Numbers in an envelope's header that codecs of other packages may have; the rest are fedpeft's."""


def _wire_id_problem(codec: type[Codec], others: Mapping[str, type[Codec]]) -> str | None:
    if codec.wire_id not in FOREIGN_WIRE_IDS:
        first, last = FOREIGN_WIRE_IDS[0], FOREIGN_WIRE_IDS[-1]
        return f"has wire_id {codec.wire_id}; {first} to {last} are for codecs of other packages"
    twins = [name for name, other in others.items() if other.wire_id == codec.wire_id]
    return f"has wire_id {codec.wire_id}, and so has {twins[0]!r}; choose another number" if twins else None


_CODECS = "fedpeft.exchange.codecs"
CODECS: Registry[type[Codec]] = Registry(
    kind="codecs",
    noun="codec",
    error=ExchangeError,
    expects=f"{_CODECS}.base:Codec",
    shipped={
        "auto": f"{_CODECS}.auto:AnyOf",
        "ternary": f"{_CODECS}.ternary:Ternary",
        "sign": f"{_CODECS}.sign:Sign",
        "masked-sign": f"{_CODECS}.sign:MaskedSign",
        "dead-zone": f"{_CODECS}.ternary:DeadZone",
        "stochastic-ternary": f"{_CODECS}.stochastic_ternary:StochasticTernary",
        "int8": f"{_CODECS}.dense:Int8",
        "dense-bf16": f"{_CODECS}.dense:DenseBf16",
        "dense-fp32": f"{_CODECS}.dense:DenseFp32",
    },
    problem=_wire_id_problem,
)
"""Of ``exchange.up.codec`` and ``exchange.down.codec``."""


def _known(registry: Registry[Any]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in registry:
            raise ValueError(registry.hint(name))
        return name

    return check


CodecName = Annotated[str, AfterValidator(_known(CODECS)), Field(examples=[*CODECS.shipped])]

register_codec = CODECS.register
"""Add a codec in this process alone, by the name that settings use; packages use entry points."""
