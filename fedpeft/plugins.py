"""What settings may name, by kind; each can be extended by other packages (docs/plugins.md).

Only names and places stand here, so that checking a setting imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from fedpeft.errors import AuditError, ConfigError, DataError, ExchangeError
from fedpeft.registry import Registry, nearest

if TYPE_CHECKING:
    from fedpeft.adapters.methods.base import AdapterMethod
    from fedpeft.aggregation.base import AggregationRule
    from fedpeft.data.readers import Reader
    from fedpeft.exchange.codecs.base import Codec
    from fedpeft.tracking.tracker import Tracker

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
        "dithered-2": f"{_CODECS}.dithered:Dithered2",
        "dithered-3": f"{_CODECS}.dithered:Dithered3",
        "dithered-4": f"{_CODECS}.dithered:Dithered4",
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
        "lora/frozen_b": f"{_METHODS}.lora:FROZEN_B",
        "lora/stack": f"{_METHODS}.lora:STACK",
        "lora/reproject": f"{_METHODS}.lora:REPROJECT",
        "lora/naive": f"{_METHODS}.lora:NAIVE",
        "miss": f"{_METHODS}.miss:MISS",
        "ia3": f"{_METHODS}.ia3:IA3",
    },
)
"""Of ``adapter.method``, where a method has several modes with ``/`` and ``adapter.aggregation``."""

_RULES = "fedpeft.aggregation"
AGGREGATION_RULES: Registry[type[AggregationRule]] = Registry(
    kind="aggregation_rules",
    noun="aggregation rule",
    error=ConfigError,
    expects=f"{_RULES}.base:AggregationRule",
    shipped={
        "none": f"{_RULES}.base:PlainMean",
        "median": f"{_RULES}.robust:Median",
        "trimmed-mean": f"{_RULES}.robust:TrimmedMean",
        "norm-clip": f"{_RULES}.robust:NormClip",
        "geometric-median": f"{_RULES}.robust:GeometricMedian",
    },
)
"""Of ``federation.robust``, beside ``auto``."""

_READERS = "fedpeft.data.readers"
READERS: Registry[Reader] = Registry(
    kind="readers",
    noun="reader",
    error=DataError,
    expects=f"{_READERS}:Reader",
    shipped={
        "jsonl": f"{_READERS}:JSONL",
        "json": f"{_READERS}:JSON",
        "csv": f"{_READERS}:CSV",
        "parquet": f"{_READERS}:PARQUET",
        "arrow": f"{_READERS}:ARROW",
        "datasets": f"{_READERS}:DATASETS",
    },
)
"""Of ``data.format``, beside ``auto``."""

_ATTACKS = "fedpeft_attacks.registry"
ATTACKS: Registry[Any] = Registry(
    kind="attacks",
    noun="attack",
    error=AuditError,
    expects=f"{_ATTACKS}:Attack",
    shipped={
        "span": f"{_ATTACKS}:SPAN",
        "sparse-recovery": f"{_ATTACKS}:SPARSE_RECOVERY",
        "sequences": f"{_ATTACKS}:SEQUENCES",
    },
)
"""Of ``audit.attacks``, beside `AUDIT_PARTS`. The core knows the names alone: the audit is no part of it."""

AUTO = "auto"
"""In place of the name of a reader or of an aggregation rule: whatever fits."""
AUDIT_PARTS = ("update-membership", "labels", "released", "epsilon")
"""What ``audit.attacks`` may name beside attacks that read text from updates: whose records made an update,
which labels they have, attacks on the adapter, audits of the claim."""

_TRACKING = "fedpeft.tracking"
TRACKERS: Registry[type[Tracker]] = Registry(
    kind="trackers",
    noun="tracker",
    error=ConfigError,
    expects=f"{_TRACKING}.tracker:Tracker",
    shipped={
        "tensorboard": f"{_TRACKING}.tensorboard_tracker:TensorBoard",
        "mlflow": f"{_TRACKING}.mlflow_tracker:MLflow",
        "wandb": f"{_TRACKING}.wandb_tracker:WeightsAndBiases",
    },
)
"""Of ``fedpeft simulate --track``."""


def known(noun: str, names: Callable[[], Iterable[str]]) -> Callable[[str], str]:
    """A check that a setting is one of some names; its error gives the nearest."""

    def check(name: str) -> str:
        if name not in (allowed := list(names())):
            raise ValueError(nearest(noun, name, allowed))
        return name

    return check


def _methods() -> Iterable[str]:
    return dict.fromkeys(name.partition("/")[0] for name in ADAPTER_METHODS)


def modes_of(method: str) -> list[str]:
    """What ``adapter.aggregation`` may be with a method; empty: the method has one mode."""
    parts = [name.partition("/") for name in ADAPTER_METHODS]
    return [mode for name, _, mode in parts if name == method and mode]


def _modes() -> Iterable[str]:
    return dict.fromkeys(mode for method in _methods() for mode in modes_of(method))


CodecName = Annotated[str, AfterValidator(known("codec", lambda: CODECS)), Field(examples=[*CODECS.shipped])]
MethodName = Annotated[
    str, AfterValidator(known("adapter method", _methods)), Field(examples=["lora", "miss", "ia3"])
]
AggregationName = Annotated[
    str,
    AfterValidator(known("aggregation", _modes)),
    Field(examples=["frozen_a", "frozen_b", "stack", "reproject", "naive"]),
]
ReaderName = Annotated[
    str, AfterValidator(known("format", lambda: (AUTO, *READERS))), Field(examples=[AUTO, *READERS.shipped])
]
RuleName = Annotated[
    str,
    AfterValidator(known("aggregation rule", lambda: (AUTO, *AGGREGATION_RULES))),
    Field(examples=[AUTO, *AGGREGATION_RULES.shipped]),
]
AttackName = Annotated[
    str,
    AfterValidator(known("attack", lambda: (*ATTACKS, *AUDIT_PARTS))),
    Field(examples=[*ATTACKS.shipped, *AUDIT_PARTS]),
]

register_codec = CODECS.register
"""Add a codec in this process alone, by the name that settings use; packages use entry points."""
register_adapter_method = ADAPTER_METHODS.register
"""Add an adapter method in this process alone; its name is ``method`` or ``method/aggregation``."""
register_aggregation_rule = AGGREGATION_RULES.register
"""Add an aggregation rule in this process alone."""
register_reader = READERS.register
"""Add a reader of files in this process alone."""
register_attack = ATTACKS.register
"""Add an attack in this process alone."""
