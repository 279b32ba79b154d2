"""What leaves a node and what comes back: updates, transforms, plans, codecs and envelopes."""

from fedpeft.exchange.codecs import CODECS, Codec, codec_named
from fedpeft.exchange.envelope import OVERHEAD_BYTES, Context, open_envelope, seal
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.measure import entropy_bits
from fedpeft.exchange.plan import ExchangePlan, plan_from_config
from fedpeft.exchange.transforms import (
    AddResidual,
    Clip,
    KeepResidual,
    Metrics,
    Quantise,
    Sparsify,
    State,
    Ternarise,
    Transform,
)
from fedpeft.exchange.update import Update

__all__ = [
    "CODECS",
    "OVERHEAD_BYTES",
    "AddResidual",
    "Clip",
    "Codec",
    "Context",
    "ExchangePlan",
    "FloatVector",
    "KeepResidual",
    "Layout",
    "Metrics",
    "Quantise",
    "Sparsify",
    "State",
    "Ternarise",
    "Transform",
    "Update",
    "codec_named",
    "entropy_bits",
    "open_envelope",
    "plan_from_config",
    "seal",
]
