"""A node's work in Flower's SecAgg+ by the functions that Flower itself ships and calls.

The steps are those of ``secaggplus_mod`` of flwr 1.41 with the settings of ``SecAggPlusWorkflow``: keys on
P-384, Shamir shares of 16-byte chunks, Fernet, masks from ``numpy.random.RandomState`` under a seed folded
to 32 bits, int64 values modulo 2^32, a vector of one tensor. Peers are all other nodes (no sparse graph).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

CLIPPING_RANGE, QUANTISATION_RANGE, MODULUS = 8.0, 2**22, 2**32


@dataclass(frozen=True)
class FlowerNode:
    """One node among peers whose public keys have arrived.

    Attributes:
        peers: public keys of the other nodes.
        threshold: shares that give a secret.
    """

    peers: tuple[bytes, ...]
    threshold: int

    @classmethod
    def among(cls, nodes: int, threshold: int) -> FlowerNode:
        """A node among ``nodes``, itself included."""
        return cls(tuple(public_key_to_bytes(generate_key_pairs()[1]) for _ in range(nodes - 1)), threshold)

    def share(self) -> list[bytes]:
        """Two key pairs, shares of seed and key, one ciphertext for each peer."""
        (mask_key, _), (share_key, _) = generate_key_pairs(), generate_key_pairs()
        secret = private_key_to_bytes(share_key)
        dealt = [
            create_shares(part, self.threshold, len(self.peers) + 1)
            for part in (os.urandom(32), private_key_to_bytes(mask_key))
        ]
        messages: list[bytes] = []
        for index, peer in enumerate(self.peers):
            key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(peer))
            plain = share_keys_plaintext_concat(0, index, dealt[0][index], dealt[1][index])
            messages.append(encrypt(key, plain))
        return messages

    def quantise(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Floats as integers below 2^22, stochastically rounded."""
        return quantize([values], CLIPPING_RANGE, QUANTISATION_RANGE)

    def mask(self, quantised: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The node's own mask and one for each peer, half of them subtracted; reduced at the end."""
        secret, shapes = private_key_to_bytes(generate_key_pairs()[0]), [part.shape for part in quantised]
        total = parameters_addition(quantised, pseudo_rand_gen(os.urandom(32), MODULUS, shapes))
        for index, peer in enumerate(self.peers):
            key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(peer))
            change = parameters_addition if index % 2 else parameters_subtraction
            total = change(total, pseudo_rand_gen(key, MODULUS, shapes))
        return parameters_mod(total, MODULUS)


def bytes_per_value(masked: list[NDArray[Any]]) -> float:
    """Bytes that a masked vector takes on the way to the coordinator."""
    return sum(part.nbytes for part in masked) / sum(part.size for part in masked)
