"""A node's five steps of a secure sum, each a function of its secrets and one message.

After Bonawitz et al. 2017 (Practical secure aggregation for privacy-preserving machine learning, active
adversary), with every key bound to the context and each masked vector signed together with the set of nodes
that it is masked against: all survivors of a sum must have signed the same set, so that no node can be
counted as a survivor whose partners were all said to have dropped. Write down the secrets that a step returns
before sending what it returns.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedpeft.secagg.context import SecureContext
from fedpeft.secagg.errors import SecureAggregationError
from fedpeft.secagg.messages import (
    COMMITMENTS_BYTES,
    NONCE_BYTES,
    RECEIPT_BYTES,
    SHARE_MESSAGE_BYTES,
    check,
    commit_seed,
    commit_shares,
    encoded,
    encoded_names,
    read_advertisement,
    sign,
    split_signed,
)
from fedpeft.secagg.shamir import SECRET_BYTES, fresh_secret, split
from fedpeft.secagg.state import Member, NodeSecrets
from fedpeft.secagg.terms import accept

if TYPE_CHECKING:
    from numpy.typing import NDArray


def advertise(context: SecureContext, member: Member) -> tuple[NodeSecrets, bytes]:
    """Accept the terms, which are written down first, and make fresh keys.

    Returns:
        The secrets and the advertisement: two X25519 public keys and a commitment, signed, 160 bytes.

    Raises:
        SecureAggregationError: the terms are not those that the node agreed to, or not the round's first.
    """
    from fedpeft.secagg.masks import public_key

    accept(context, member)
    mask_key, share_key, seed = fresh_secret(), os.urandom(32), fresh_secret()
    content = public_key(mask_key) + public_key(share_key) + commit_seed(context, member.name, seed)
    message = content + sign(member.signer, "advertisement", context, member.name, content)
    return NodeSecrets(context, member.name, mask_key, share_key, seed, message), message


def share(secrets: NodeSecrets, advertisements: Mapping[str, bytes]) -> tuple[NodeSecrets, dict[str, bytes]]:
    """Check everybody's keys and deal shares of the own seed and mask key.

    Args:
        secrets: from `advertise`.
        advertisements: of the nodes that answered, by name, this node's own included.

    Returns:
        The secrets and one message for each of these nodes, 156 bytes each: commitments to the two shares,
        and the shares under AES-256-GCM for that node alone.

    Raises:
        SecureAggregationError: a key that is not signed by its node for this context, too few nodes, or a
            second request with other keys.
    """
    context = secrets.context
    if secrets.peers and dict(secrets.peers) != dict(advertisements):
        raise SecureAggregationError(
            "shares were dealt to another set of keys before; wait for a new attempt"
        )
    if secrets.peers:
        return secrets, dict(secrets.messages)
    context.require_quorum(advertisements, "advertised keys")
    _require_own(secrets.name, "advertisement", advertisements, secrets.advertisement)
    peers = {name: read_advertisement(context, name, message) for name, message in advertisements.items()}
    points = {name: context.point(name) for name in peers}
    dealt = [split(secret, context.threshold, points.values()) for secret in (secrets.seed, secrets.mask_key)]
    messages = {
        name: _seal(secrets, name, peers[name].share_key, b"".join(shares[point] for shares in dealt))
        for name, point in points.items()
    }
    return replace(secrets, peers=dict(advertisements), messages=messages), messages


def check_inbox(secrets: NodeSecrets, inbox: Mapping[str, bytes]) -> dict[str, bytes]:
    """Open what was dealt to this node; before values are made that no masks could hide.

    Args:
        secrets: from `share`.
        inbox: as `mask` takes it.

    Returns:
        The shares that this node holds, 64 bytes by dealer.

    Raises:
        SecureAggregationError: too few dealers, this node not among them, a share that does not open, or a
            dealer with whose key no mask can be agreed.
    """
    from fedpeft.secagg.masks import check_key

    secrets.context.require_quorum(inbox, "dealt shares")
    _require_own(secrets.name, "share", inbox, secrets.messages.get(secrets.name, b""))
    shares = {dealer: _open(secrets, dealer, message) for dealer, message in inbox.items()}
    for dealer in shares:
        check_key(secrets.peers[dealer][:32], dealer)
    return shares


def mask(
    secrets: NodeSecrets, member: Member, values: NDArray[Any], inbox: Mapping[str, bytes]
) -> tuple[NodeSecrets, NDArray[Any], bytes]:
    """Hide the node's values: they can be read in no sum but that of the survivors.

    Args:
        secrets: from `share`.
        member: this node.
        values: unsigned integers of the context's type, shape ``(size,)``, from `to_residues`; not changed.
        inbox: the messages that the nodes of the sum dealt to this node, by dealer, its own included.

    Returns:
        The secrets, the masked values (same type and shape) and a receipt of 96 bytes: SHA-256 of the masked
        values, and a signature of it and of the set of dealers.

    Raises:
        SecureAggregationError: values of another type or size, a share that does not open, too few dealers,
            or a vector that was masked otherwise before (two of them differ by what is to be hidden).
    """
    context = secrets.context
    if values.dtype != context.dtype or values.shape != (context.size,):
        wanted = f"{context.dtype} of shape ({context.size},)"
        raise SecureAggregationError(
            f"values are {values.dtype} of shape {values.shape}, the round sums {wanted}"
        )
    shares = check_inbox(secrets, inbox)
    masked = _masked(secrets, values, shares)
    digest = hashlib.sha256(masked.data).digest()
    receipt = digest + sign(member.signer, "receipt", context, secrets.name, digest, encoded_names(shares))
    member.store.once(context, "masked", receipt)
    return replace(secrets, shares=shares, receipt=receipt), masked, receipt


def agree(secrets: NodeSecrets, member: Member, receipts: Mapping[str, bytes]) -> tuple[NodeSecrets, bytes]:
    """Sign the one set of survivors whose sum may be opened.

    Args:
        secrets: from `mask`.
        member: this node.
        receipts: of the nodes whose masked vectors arrived, by name, this node's own included.

    Returns:
        The secrets and the signature, 64 bytes.

    Raises:
        SecureAggregationError: too few survivors, one that masked against other nodes, or another set than
            the one signed before.
    """
    context, participants = secrets.context, encoded_names(secrets.participants)
    context.require_quorum(receipts, "survived")
    _require_own(secrets.name, "receipt", receipts, secrets.receipt)
    for name, receipt in receipts.items():
        if name not in secrets.shares:
            raise SecureAggregationError(f"survivor {name!r} dealt no share to this node; leave it out")
        digest, signature = split_signed(receipt, RECEIPT_BYTES, "receipt", name)
        check(signature, "receipt", context, name, digest, participants)
    survivors = tuple(sorted(receipts))
    member.store.once(context, "agreed", encoded(participants, encoded_names(survivors)))
    signature = sign(
        member.signer, "agreement", context, secrets.name, participants, encoded_names(survivors)
    )
    return replace(secrets, survivors=survivors), signature


def reveal(secrets: NodeSecrets, member: Member, signatures: Mapping[str, bytes]) -> bytes:
    """Let go what opens the sum of the survivors: one share about each node, never both.

    Of a survivor the share of its seed, of a node that dropped the share of its mask key.

    Args:
        secrets: from `agree`.
        member: this node.
        signatures: of survivors under the set that this node signed, by name.

    Returns:
        One share of 32 bytes for each participant, in the order of the names, and a signature.

    Raises:
        SecureAggregationError: fewer than ``threshold`` survivors signed this very set, or shares of another
            set were let go in this round before.
    """
    context, survivors = secrets.context, secrets.survivors
    if not survivors:
        raise SecureAggregationError("this node has signed no set of survivors; send it the receipts first")
    sets = (encoded_names(secrets.participants), encoded_names(survivors))
    agreed = {name for name in signatures if name in survivors}
    for name in agreed:
        check(signatures[name], "agreement", context, name, *sets)
    if len(agreed) < context.threshold:
        raise SecureAggregationError(
            f"{len(agreed)} survivors signed the set, {context.threshold} are needed"
        )
    shares = b"".join(
        pair[:SECRET_BYTES] if name in survivors else pair[SECRET_BYTES:]
        for name, pair in sorted(secrets.shares.items())
    )
    message = shares + sign(member.signer, "reveal", context, secrets.name, *sets, shares)
    member.store.once(context, "revealed", message)
    return message


def _require_own(name: str, what: str, inbox: Mapping[str, bytes], message: bytes) -> None:
    if not message or inbox.get(name) != message:
        raise SecureAggregationError(f"the {what} given as that of {name!r} is not its own; start anew")


def _masked(secrets: NodeSecrets, values: NDArray[Any], peers: Mapping[str, bytes]) -> NDArray[Any]:
    from fedpeft.secagg.masks import add_pair, add_self, exchange

    context, total = secrets.context, values.copy()
    for peer in peers:
        if peer != secrets.name:
            public = secrets.peers[peer][:32]
            add_pair(context, total, secrets.name, peer, exchange(secrets.mask_key, public, peer))
    add_self(context, total, secrets.name, secrets.seed)
    return total


def _channel(secrets: NodeSecrets, dealer: str, holder: str, public: bytes) -> bytes:
    from fedpeft.secagg.masks import derive, exchange

    peer = holder if dealer == secrets.name else dealer
    agreed = exchange(secrets.share_key, public, peer)
    return derive(secrets.context, "share", agreed, dealer, holder)


def _seal(secrets: NodeSecrets, holder: str, public: bytes, shares: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    commitments = commit_shares(secrets.context, secrets.name, holder, shares)
    nonce, key = os.urandom(NONCE_BYTES), _channel(secrets, secrets.name, holder, public)
    sealed = AESGCM(key).encrypt(nonce, shares, secrets.context.digest + commitments)
    return commitments + nonce + sealed


def _open(secrets: NodeSecrets, dealer: str, message: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if dealer not in secrets.peers or len(message) != SHARE_MESSAGE_BYTES:
        raise SecureAggregationError(f"the share of {dealer!r} is not one of this round; leave the node out")
    commitments, rest = message[:COMMITMENTS_BYTES], message[COMMITMENTS_BYTES:]
    key = _channel(secrets, dealer, secrets.name, secrets.peers[dealer][32:64])
    try:
        shares = AESGCM(key).decrypt(
            rest[:NONCE_BYTES], rest[NONCE_BYTES:], secrets.context.digest + commitments
        )
    except InvalidTag as error:
        raise SecureAggregationError(f"the share of {dealer!r} does not open; leave the node out") from error
    if commit_shares(secrets.context, dealer, secrets.name, shares) != commitments:
        raise SecureAggregationError(
            f"the share of {dealer!r} is not what it committed to; leave the node out"
        )
    return shares
