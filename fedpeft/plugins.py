"""What settings may name, by kind; each can be extended by other packages (docs/plugins.md).

Only names and places stand here, so that checking a setting imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.registry import Registry, nearest

if TYPE_CHECKING:
    from fedpeft.adapters.methods.base import AdapterMethod
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

_METHODS = "fedpeft.adapters.methods"
ADAPTER_METHODS: Registry[AdapterMethod] = Registry(
    kind="adapter_methods",
    noun="adapter method",
    error=ConfigError,
    expects=f"{_METHODS}.base:AdapterMethod",
    shipped={
        "lora/frozen_a": f"{_METHODS}.lora:FROZEN_A",
        "lora/stack": f"{_METHODS}.lora:STACK",
        "lora/reproject": f"{_METHODS}.lora:REPROJECT",
        "lora/naive": f"{_METHODS}.lora:NAIVE",
        "miss": f"{_METHODS}.miss:MISS",
        "ia3": f"{_METHODS}.ia3:IA3",
    },
)
"""Of ``adapter.method``, where a method has several modes with ``/`` and ``adapter.aggregation``."""


def known(noun: str, names: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """A check that a setting is one of some names; its error gives the nearest."""

    def check(name: str) -> str:
        if name not in (allowed := list(names())):
            raise ValueError(nearest(noun, name, allowed))
        return name

    return check


def _methods() -> Iterable[str]:
    return dict.fromkeys(name.partition("/")[0] for name in ADAPTER_METHODS)


CodecName = Annotated[str, AfterValidator(known("codec", lambda: CODECS)), Field(examples=[*CODECS.shipped])]
MethodName = Annotated[
    str, AfterValidator(known("adapter method", _methods)), Field(examples=["lora", "miss", "ia3"])
]

register_codec = CODECS.register
"""Add a codec in this process alone, by the name that settings use; packages use entry points."""
