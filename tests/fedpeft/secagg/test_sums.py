"""Secure sums are exact whoever drops, and say nothing else."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from fedpeft.secagg import (
    CoordinatorRound,
    NodeSecrets,
    SecureAggregationError,
    check_inbox,
    from_residues,
    mask,
    share,
    to_residues,
)
from fedpeft.secagg.masks import derive, exchange

SIZE = 300


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_sum_is_exact(federation, count):
    nodes = federation(count, least_nodes=2)
    coordinator = nodes.run()
    assert np.array_equal(nodes.opened(coordinator), nodes.sum(nodes.members))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_every_width_is_exact(federation, bits):
    nodes = federation(3)
    context = nodes.context(bits=bits)
    boxes = nodes.inboxes(nodes.share(nodes.advertise(context)))
    bound = 2 ** (bits - 1) // 3
    values = {name: np.random.default_rng(7).integers(-bound, bound + 1, SIZE) for name in boxes}
    coordinator = CoordinatorRound(context)
    for name in boxes:
        coordinator.add_advertisement(name, nodes.secrets[name].advertisement)
    coordinator.advertisements()
    for name in boxes:
        coordinator.add_shares(name, dict(nodes.secrets[name].messages))
    coordinator.inboxes()
    for name, box in boxes.items():
        residues = to_residues(values[name], bits, bound)
        nodes.secrets[name], *sent = mask(nodes.secrets[name], nodes.members[name], residues, box)
        coordinator.add_masked(name, *sent)
    for name in boxes:
        coordinator.add_signature(name, nodes.agree(name, coordinator.receipts()))
    for name in boxes:
        coordinator.add_reveal(name, nodes.reveal(name, coordinator.signatures()))
    assert np.array_equal(from_residues(coordinator.result(), bits, 3 * bound), sum(values.values()))


def test_nodes_may_drop_at_every_point(federation):
    nodes = federation(15)
    coordinator = nodes.run(
        before=["org-000"], unmasked=["org-003", "org-011"], unsigned=["org-004"], silent=["org-005"]
    )
    survivors = set(nodes.members) - {"org-000", "org-003", "org-011"}
    assert set(coordinator.survivors) == survivors
    assert np.array_equal(nodes.opened(coordinator), nodes.sum(survivors))


@pytest.mark.parametrize("seed", range(6))
def test_any_pattern_of_drops_gives_the_sum_or_an_error(federation, seed):
    draw = np.random.default_rng(seed)
    nodes = federation(7)
    left, drops = list(nodes.members), {}
    for step in ("before", "unmasked", "unsigned", "silent"):
        drops[step] = [name for name in left if draw.random() < 0.08]
        left = [name for name in left if name not in drops[step]]
    if len(left) >= nodes.cohort.threshold:
        coordinator = nodes.run(**drops)
        assert np.array_equal(nodes.opened(coordinator), nodes.sum(coordinator.survivors))
    else:
        with pytest.raises(SecureAggregationError, match="needed"):
            nodes.run(**drops).result()


def test_127_ternary_nodes_never_overflow_a_byte():
    for sign in (1, -1):
        total = np.zeros(4, np.uint8)
        for _ in range(127):
            total += to_residues(np.full(4, sign), 8, 1)
        assert from_residues(total, 8, 127).tolist() == [127 * sign] * 4


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ({"before": ["org-000", "org-001"]}, "3 nodes advertised keys"),
        ({"unmasked": ["org-000", "org-001"]}, "3 nodes survived"),
        ({"unsigned": ["org-000", "org-001"]}, "3 nodes signed"),
        ({"silent": ["org-000", "org-001"]}, "3 nodes revealed"),
    ],
)
def test_too_few_nodes_are_a_clear_error(federation, drops, message):
    with pytest.raises(SecureAggregationError, match=message):
        federation().run(**drops).result()


def test_a_masked_vector_says_nothing(federation):
    nodes = federation()
    zeros = np.zeros(SIZE, np.int64)
    boxes = nodes.inboxes(nodes.share(nodes.advertise(nodes.context())))
    masked = np.concatenate([nodes.mask(name, box, zeros)[0] for name, box in boxes.items()])
    counts = np.bincount(masked >> 4, minlength=16)
    assert ((counts - len(masked) / 16) ** 2).sum() / (len(masked) / 16) < 75  # chi-square, 15 degrees: 6e-10


def test_every_step_can_be_repeated_with_the_same_request(federation):
    nodes = federation()
    context = nodes.context()
    advertisements = nodes.advertise(context)
    dealt = nodes.share(advertisements)
    assert nodes.share(advertisements) == dealt
    boxes = nodes.inboxes(dealt)
    sent = {name: nodes.mask(name, box) for name, box in boxes.items()}
    again = nodes.mask("org-000", boxes["org-000"])
    assert np.array_equal(again[0], sent["org-000"][0]) and again[1] == sent["org-000"][1]
    receipts = {name: receipt for name, (_, receipt) in sent.items()}
    signatures = {name: nodes.agree(name, receipts) for name in boxes}
    assert nodes.agree("org-000", receipts) == signatures["org-000"]
    assert nodes.reveal("org-000", signatures) == nodes.reveal("org-000", signatures)


# Nodes that lie: one bad reply is refused with the node's name, and the round goes on.


def test_bad_replies_are_isolated(federation):
    nodes = federation(6)
    context = nodes.context()
    coordinator = CoordinatorRound(context)

    def refused(match, call, *arguments):
        with pytest.raises(SecureAggregationError, match=match):
            call(*arguments)

    messages = nodes.advertise(context)
    for name, message in messages.items():
        refused(f"'{name}' has 3 bytes", coordinator.add_advertisement, name, b"bad")
        refused("not signed", coordinator.add_advertisement, name, message[:-64] + bytes(64))
        refused("no such node", coordinator.add_advertisement, "stranger", message)
        coordinator.add_advertisement(name, message)
        refused("answered before", coordinator.add_advertisement, name, message)
    for name, dealt in nodes.share(coordinator.advertisements()).items():
        refused("not one for each", coordinator.add_shares, name, dealt | {"org-000": b"short"})
        refused("not one for each", coordinator.add_shares, name, {name: dealt[name]})
        refused("no part", coordinator.add_shares, "stranger", dealt)
        coordinator.add_shares(name, dealt)
    for name, inbox in coordinator.inboxes().items():
        masked, receipt = nodes.mask(name, inbox)
        refused("uint8 of shape", coordinator.add_masked, name, masked[1:], receipt)
        refused("uint16 of shape", coordinator.add_masked, name, masked.astype(np.uint16), receipt)
        refused("not those of its receipt", coordinator.add_masked, name, masked + np.uint8(1), receipt)
        refused("not signed", coordinator.add_masked, name, masked, receipt[:32] + bytes(64))
        if name != "org-005":
            coordinator.add_masked(name, masked, receipt)
            refused("answered before", coordinator.add_masked, name, masked, receipt)
    receipts = coordinator.receipts()
    refused("phase 2, the round is in 3", coordinator.add_masked, "org-005", masked, receipt)
    for name in receipts:
        refused("not signed", coordinator.add_signature, name, bytes(64))
        coordinator.add_signature(name, nodes.agree(name, receipts))
    signatures = coordinator.signatures()
    for name in signatures:
        message = nodes.reveal(name, signatures)
        refused("bytes, it must have", coordinator.add_reveal, name, message[:-1])
        refused("not signed", coordinator.add_reveal, name, bytes(32) + message[32:])
        false = _with_false_share(nodes, name, message)
        refused(
            f"reveal of '{name}': the share of 'org-000' is not the one", coordinator.add_reveal, name, false
        )
        if name != "org-001":
            coordinator.add_reveal(name, message)
    assert np.array_equal(nodes.opened(coordinator), nodes.sum(receipts))


def _with_false_share(nodes, name, message):
    """The reveal of a node that changes a share and signs it."""
    from fedpeft.secagg.messages import encoded_names, sign

    secrets, shares = nodes.secrets[name], bytes(32) + message[32:-64]
    sets = (encoded_names(secrets.participants), encoded_names(secrets.survivors))
    return shares + sign(nodes.members[name].signer, "reveal", secrets.context, name, *sets, shares)


@pytest.mark.parametrize("part", ["seed", "mask_key"])
def test_a_dealer_of_false_secrets_is_named(federation, part):
    nodes = federation()
    context = nodes.context()
    coordinator = CoordinatorRound(context)
    for name, message in nodes.advertise(context).items():
        coordinator.add_advertisement(name, message)
    false = dataclasses.replace(nodes.secrets["org-002"], **{part: b"\7" * 32})
    nodes.keep("org-002", false)
    for name, dealt in nodes.share(coordinator.advertisements()).items():
        coordinator.add_shares(name, dealt)
    for name, inbox in coordinator.inboxes().items():
        if part == "seed" or name != "org-002":
            coordinator.add_masked(name, *nodes.mask(name, inbox))
    for name in coordinator.receipts():
        coordinator.add_signature(name, nodes.agree(name, coordinator.receipts()))
    for name in coordinator.signatures():
        coordinator.add_reveal(name, nodes.reveal(name, coordinator.signatures()))
    with pytest.raises(SecureAggregationError, match="'org-002' dealt shares of another secret"):
        coordinator.result()


def test_a_share_that_does_not_open_names_its_dealer(federation):
    nodes = federation()
    dealt = nodes.share(nodes.advertise(nodes.context()))
    boxes = nodes.inboxes(dealt)
    for message in (os.urandom(156), b"short", dealt["org-001"]["org-002"], dealt["org-002"]["org-000"]):
        with pytest.raises(SecureAggregationError, match="the share of 'org-001'"):
            nodes.mask("org-000", boxes["org-000"] | {"org-001": message})


def test_a_dealer_that_commits_to_another_share_is_named(federation):
    """Its share opens, but would later be held against the node that reveals it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nodes = federation()
    boxes = nodes.inboxes(nodes.share(nodes.advertise(nodes.context())))
    dealer, public = nodes.secrets["org-001"], nodes.secrets["org-000"].advertisement[32:64]
    key = derive(dealer.context, "share", exchange(dealer.share_key, public, "org-000"), "org-001", "org-000")
    sealed = AESGCM(key).encrypt(bytes(12), b"s" * 64, dealer.context.digest + bytes(64))
    with pytest.raises(SecureAggregationError, match="the share of 'org-001' is not what it committed to"):
        nodes.mask("org-000", boxes["org-000"] | {"org-001": bytes(64) + bytes(12) + sealed})


def test_keys_of_low_order_are_refused(federation):
    from fedpeft.secagg.messages import sign

    nodes = federation()
    context = nodes.context()
    messages = nodes.advertise(context)
    content = bytes(96)
    signature = sign(nodes.members["org-001"].signer, "advertisement", context, "org-001", content)
    with pytest.raises(SecureAggregationError, match="'org-001' is no usable X25519 key"):
        share(nodes.secrets["org-000"], messages | {"org-001": content + signature})
    with pytest.raises(SecureAggregationError, match="'org-001' is no usable X25519 key"):
        CoordinatorRound(context).add_advertisement("org-001", content + signature)


def test_a_dealer_with_a_mask_key_of_low_order_is_found_in_the_inbox(federation):
    """Its shares open, as its other key is good; without this no mask could be made after the training."""
    from fedpeft.secagg.messages import sign

    nodes = federation()
    context = nodes.context()
    messages = nodes.advertise(context)
    content = bytes(32) + messages["org-001"][32:96]
    signature = sign(nodes.members["org-001"].signer, "advertisement", context, "org-001", content)
    told = messages | {"org-001": content + signature}
    secrets, own = share(nodes.secrets["org-000"], told)
    others = {name: share(nodes.secrets[name], messages)[1] for name in messages if name != "org-000"}
    box = {"org-000": own["org-000"]} | {name: dealt["org-000"] for name, dealt in others.items()}
    with pytest.raises(SecureAggregationError, match="'org-001' is no usable X25519 key"):
        check_inbox(secrets, box)


def test_values_of_another_type_or_size_are_refused(federation):
    nodes = federation()
    boxes = nodes.inboxes(nodes.share(nodes.advertise(nodes.context())))
    for values in (np.zeros(SIZE, np.int8), np.zeros(SIZE + 1, np.uint8), np.zeros((SIZE, 1), np.uint8)):
        with pytest.raises(SecureAggregationError, match="the round sums uint8 of shape"):
            mask(nodes.secrets["org-000"], nodes.members["org-000"], values, boxes["org-000"])


def test_secrets_show_nothing_and_survive_bytes(federation):
    nodes = federation()
    nodes.receipts()
    secrets = nodes.secrets["org-000"]
    assert NodeSecrets.from_bytes(secrets.to_bytes()) == secrets
    shown = repr(secrets)
    for value in (secrets.seed, secrets.mask_key, secrets.share_key):
        assert value.hex() not in shown and repr(value) not in shown
    with pytest.raises(SecureAggregationError, match="cannot be read"):
        NodeSecrets.from_bytes(b"{}")
