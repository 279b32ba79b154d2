"""The codec that is chosen for every vector anew: the one with the most energy per bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange.codecs.base import Codec
from fedpeft.exchange.codecs.sign import MaskedSign, Sign
from fedpeft.exchange.codecs.ternary import DeadZone, Ternary
from fedpeft.exchange.decoded import Decoded, Positions
from fedpeft.exchange.layout import FloatVector, Layout
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.support import PublicSupport
from fedpeft.exchange.transforms import Metrics, Sparsify, State, Transform, Update, check_density, fitted, l2

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig


@dataclass(frozen=True)
class AnyOf(Codec):
    """Several codecs; an envelope takes the one that is shortest for its values and says which."""

    members: tuple[Codec, ...]

    name = "auto"
    wire_id = 255
    own_step = "choose"

    @classmethod
    def configured(cls, direction: DirectionConfig) -> AnyOf:
        """Ternary, dead-zone, and signs on a support of as many values as ternary's bytes pay for."""
        share = _ternary_bits(direction.density)
        dense = Sign() if share >= 1 else MaskedSign(PublicSupport(share, direction.support))
        return cls((Ternary(), DeadZone(), dense))

    @classmethod
    def transforms(cls, direction: DirectionConfig) -> tuple[Transform, ...]:
        """One step that tries all members."""
        return (Choose(cls.configured(direction), direction.density),)

    @property
    def writers(self) -> tuple[Codec, ...]:
        """Its members."""
        return self.members

    def at(self, context: Context, released: Decoded | None = None) -> AnyOf:
        """All members for one message."""
        return replace(self, members=tuple(member.at(context, released) for member in self.members))

    def writer(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> Codec:
        """The member whose bytes are fewest; of equals the first.

        Raises:
            ExchangeError: none carries these values.
        """
        sizes: dict[int, int] = {}
        for index, member in enumerate(self.members):
            try:
                sizes[index] = len(member.encode(values, layout, support))
            except ExchangeError:
                continue
        if not sizes:
            names = ", ".join(member.name for member in self.members)
            raise ExchangeError(f"none of {names} carries these values; put Choose() before")
        return self.members[min(sizes, key=sizes.__getitem__)]

    def fit(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> FloatVector:
        """The values themselves: `Choose` fits them."""
        return values

    def encode(self, values: FloatVector, layout: Layout, support: Positions | None = None) -> bytes:
        """The shortest member's bytes."""
        return self.writer(values, layout, support).encode(values, layout, support)

    def decode(self, payload: bytes, layout: Layout) -> Decoded:
        """Not possible: the header says which member decodes."""
        raise EnvelopeError("auto is no codec of an envelope; its header names one")

    def max_bytes(self, layout: Layout) -> int:
        """What the longest member may take."""
        return max(member.max_bytes(layout) for member in self.members)


@dataclass(frozen=True)
class Choose(Transform):
    """Take the codec with the most energy per bit for this very vector.

    Every member carries the vector at about the cost of ternary at ``density``; energy is the share of the
    vector's squared norm that is decoded, bits are those of the bytes written.

    Attributes:
        codec: the members to choose from.
        density: of ternary; sets the budget.
    """

    codec: AnyOf
    density: float

    name = "choose"
    post_processing = True

    def __post_init__(self) -> None:
        check_density(self.density)

    @property
    def rounds_for(self) -> AnyOf:
        """Its codec."""
        return self.codec

    def at(self, context: Context, released: Decoded | None = None) -> Choose:
        """The step with the members of one message."""
        return Choose(self.codec.at(context, released), self.density)

    def apply(self, update: Update, state: State) -> tuple[Update, Metrics]:
        """Measure ``codec``, the number of what is written, and each member's ``energy_per_bit``."""
        results = {member.name: self._tried(member, update) for member in self.codec.members}
        best, _ = max(results.values(), key=lambda result: result[1])
        energy = {f"energy_per_bit.{name}": score for name, (_, score) in results.items()}
        written = self.codec.writer(best.values, best.layout, best.support)
        return best, {"codec": float(written.wire_id), **energy}

    def _tried(self, codec: Codec, update: Update) -> tuple[Update, float]:
        sparse = update
        if share := codec.choice_density:
            sparse, _ = Sparsify(self.density * share).apply(update, {})
        result = fitted(codec, sparse)
        bits = 8 * len(codec.encode(result.values, result.layout, result.support))
        whole, lost = l2(update.values) ** 2, l2(update.values - result.values) ** 2
        return result, (1 - lost / whole) * update.layout.size / bits if whole else 0.0


def _ternary_bits(density: float) -> float:
    """Entropy of a symbol that is plus or minus with this probability, in bits."""
    shares = np.array([density / 2, density / 2, 1 - density])
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
