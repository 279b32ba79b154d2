"""What leaves a node and what comes back: updates, transforms, plans, codecs and envelopes."""

from fedpeft.exchange.codecs.auto import AnyOf, Choose
from fedpeft.exchange.codecs.base import Codec, codec_named, public_support
from fedpeft.exchange.codecs.dense import DenseBf16, DenseFp32, Int8
from fedpeft.exchange.codecs.public_ternary import PublicTernary
from fedpeft.exchange.codecs.sign import MaskedSign, Sign
from fedpeft.exchange.codecs.stochastic_ternary import StochasticTernarise
from fedpeft.exchange.codecs.ternary import DeadZone, Ternarise, Ternary
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.entropy import entropy_bits
from fedpeft.exchange.envelope import (
    OVERHEAD_BYTES,
    codec_of,
    open_envelope,
    open_payload,
    seal,
    seal_payload,
)
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.plan import (
    ExchangePlan,
    codec_from_config,
    noisy_values,
    plan_from_config,
    up_codec,
    up_plan,
)
from fedpeft.exchange.support import PublicSupport
from fedpeft.exchange.transforms import (
    AddResidual,
    Clip,
    KeepResidual,
    Metrics,
    Quantise,
    Sparsify,
    State,
    Transform,
    Update,
)

__all__ = [
    "OVERHEAD_BYTES",
    "AddResidual",
    "AnyOf",
    "Choose",
    "Clip",
    "Codec",
    "Context",
    "DeadZone",
    "Decoded",
    "DenseBf16",
    "DenseFp32",
    "ExchangePlan",
    "FloatVector",
    "Int8",
    "KeepResidual",
    "Layout",
    "MaskedSign",
    "Metrics",
    "PublicSupport",
    "PublicTernary",
    "Quantise",
    "Sign",
    "Sparsify",
    "State",
    "StochasticTernarise",
    "Ternarise",
    "Ternary",
    "Transform",
    "Update",
    "codec_from_config",
    "codec_named",
    "codec_of",
    "entropy_bits",
    "noisy_values",
    "open_envelope",
    "open_payload",
    "plan_from_config",
    "public_support",
    "seal",
    "seal_payload",
    "up_codec",
    "up_plan",
]
