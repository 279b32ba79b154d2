"""Add a codec of your own and run a federation that uses it.

A codec says how values become bytes and back. It is refused bytes that it would not have written itself: what
comes from outside is hostile until proven otherwise. A package registers its codecs by an entry point in the
group `fedpeft.codecs`; a notebook registers them for its own process, as here.
"""

from dataclasses import dataclass

import numpy as np

from fedpeft import Codec, register_codec
from fedpeft.errors import EnvelopeError, ExchangeError
from fedpeft.exchange import Decoded
from fedpeft_simulations import simulate


@dataclass(frozen=True)
class Half(Codec):
    """Every value as float16: 16 bits, 11 of them significant."""

    name = "half"
    wire_id = 64  # 64 to 254 are for codecs of other packages
    same_values = True  # all nodes send all values

    def fit(self, values, layout, support=None):
        """Values rounded to float16."""
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise ExchangeError("a value is too large for float16; clip the update before")
        return rounded.astype(np.float32)

    def encode(self, values, layout, support=None):
        """Two bytes per value."""
        if not np.array_equal(self.fit(values, layout), values):
            raise ExchangeError("half cannot carry these values exactly; quantise before")
        return values.astype("<f2").tobytes()

    def decode(self, payload, layout):
        """Exact values; each must be finite."""
        if len(payload) != self.max_bytes(layout):
            raise EnvelopeError(f"payload has {len(payload)} bytes, half needs {self.max_bytes(layout)}")
        values = np.frombuffer(payload, "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise EnvelopeError("payload holds a value that is not finite")
        return Decoded(layout, values)

    def max_bytes(self, layout):
        """Two bytes per value."""
        return 2 * layout.size


register_codec("half", Half)

settings = {
    "exchange.up.codec": "half",
    "federation.nodes": 2,
    "federation.rounds": 2,
    "federation.local_steps": 1,
    "federation.batch_size": 4,
    "data.samples": 16,
    "data.test_samples": 8,
    "adapter.rank": 4,
    "run.baselines": [],
    "audit.enabled": False,
}
run = simulate("embedded", settings, out="runs/own-codec", mode="overwrite").result()
print(run.rounds[["codecs", "bytes_up", "values_up"]])
sent = run.summary["bytes"]
print(f"{sent['bits_per_parameter']:.2f} bits per value over both directions")
