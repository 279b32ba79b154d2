"""Compress an update at several densities and see what is lost.

An exchange plan is an ordered tuple of transforms and the codec that carries their result. Error feedback
keeps what was not sent, so that later rounds deliver it.
"""

import numpy as np

from fedpeft import Context, ExchangePlan, Layout, Signer, Update, Verifier, open_envelope, seal
from fedpeft.exchange import AddResidual, KeepResidual, Sparsify, Ternarise, codec_named

layout = Layout(("layers.0.lora_B.weight", "layers.1.lora_B.weight"), ((256, 16), (256, 16)))
change = np.random.default_rng(0).standard_t(4, layout.size).astype(np.float32)
signer = Signer.generate()

print("density  bytes  ratio  energy kept")
for density in (0.5, 0.2, 0.05):
    codec = codec_named("ternary")
    plan = ExchangePlan((AddResidual(), Sparsify(density), Ternarise(), KeepResidual()), codec)
    context = Context(bytes(16), 1, "hospital", bytes(32), "up")
    state = {}  # belongs to the node and lives as long as the run
    sent, _ = plan.run(Update(layout, change, round=1, steps=1), state)
    envelope = seal(sent, plan, context, signer)

    received = open_envelope(envelope, layout, codec, context, Verifier(signer.public)).dense()
    assert np.array_equal(received, sent.values)  # what is decoded is what was sent, bit for bit
    assert np.allclose(received + state["residual"], change, atol=1e-6)  # nothing is lost, some is late
    share = 1 - np.sum((change - received) ** 2) / np.sum(change**2)
    print(f"{density:7.0%} {len(envelope):6,} {change.nbytes / len(envelope):5.1f}x {share:8.0%}")

try:
    open_envelope(envelope[:-1] + b"x", layout, codec, context, Verifier(signer.public))
except Exception as error:
    print(f"a changed envelope is refused: {error}")
