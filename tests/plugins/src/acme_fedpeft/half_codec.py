"""A codec: every value as float16."""

from dataclasses import dataclass

import numpy as np

from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import Codec, Decoded


@dataclass(frozen=True)
class Half(Codec):
    """16 bits per value, 11 of them significant."""

    name = "half"
    wire_id = 64
    same_values = True

    def fit(self, values, layout, support=None):
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)

    def encode(self, values, layout, support=None):
        if not np.array_equal(self.fit(values, layout), values) or not np.isfinite(values).all():
            raise ExchangeError("half cannot carry these values exactly; quantise before")
        return values.astype("<f2").tobytes()

    def decode(self, payload, layout):
        values = np.frombuffer(payload, "<f2").astype(np.float32)
        if values.size != layout.size or not np.isfinite(values).all():
            raise EnvelopeError("these are not two bytes for each value, all finite")
        return Decoded(layout, values)

    def max_bytes(self, layout):
        return 2 * layout.size
