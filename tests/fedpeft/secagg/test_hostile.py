"""A coordinator that lies learns nothing: each of its ways is refused by the nodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedpeft.cohort import Cohort
from fedpeft.secagg import (
    ReleaseStore,
    SecureAggregationError,
    TermsRefused,
    advertise,
    agree,
    mask,
    reveal,
    share,
    to_residues,
)
from fedpeft.secagg.messages import check, encoded_names, sign
from fedpeft.trust import Signer


def test_swapped_keys_are_refused(federation):
    nodes = federation()
    messages = nodes.advertise(nodes.context())
    signer, own = Signer.generate(), nodes.members["org-001"]
    roster = {**own.roster, "org-001": signer.public}
    store = ReleaseStore(own.store.folder / "of-a-liar")
    false = dataclasses.replace(own, signer=signer, roster=roster, store=store)
    _, forged = advertise(nodes.context(roster=tuple(roster.items())), false)
    with pytest.raises(SecureAggregationError, match="'org-001' is not signed by its key"):
        share(nodes.secrets["org-000"], messages | {"org-001": forged})
    with pytest.raises(SecureAggregationError, match="not its own"):
        share(nodes.secrets["org-000"], messages | {"org-000": messages["org-001"]})
    flipped = bytes([messages["org-001"][0] ^ 1]) + messages["org-001"][1:]
    with pytest.raises(SecureAggregationError, match="not signed"):
        share(nodes.secrets["org-000"], messages | {"org-001": flipped})
    with pytest.raises(SecureAggregationError, match="no such node"):
        share(nodes.secrets["org-000"], messages | {"stranger": forged})


def test_shares_are_dealt_to_one_set_of_keys(federation):
    nodes = federation()
    messages = nodes.advertise(nodes.context())
    nodes.share(messages)
    fewer = {name: message for name, message in messages.items() if name != "org-004"}
    with pytest.raises(SecureAggregationError, match="dealt to another set of keys before"):
        share(nodes.secrets["org-000"], fewer)


def test_two_sets_of_survivors_are_refused(federation):
    nodes = federation()
    receipts = nodes.receipts()
    fewer = {name: receipt for name, receipt in receipts.items() if name != "org-004"}
    before = nodes.secrets["org-000"]
    nodes.agree("org-000", receipts)
    for secrets in (nodes.secrets["org-000"], before):
        with pytest.raises(SecureAggregationError, match="another request was agreed before"):
            agree(secrets, nodes.members["org-000"], fewer)


def test_signatures_of_another_set_open_nothing(federation):
    nodes = federation()
    receipts = nodes.receipts()
    fewer = {name: receipt for name, receipt in receipts.items() if name != "org-004"}
    nodes.agree("org-000", receipts)
    others = {name: nodes.agree(name, fewer) for name in ("org-001", "org-002", "org-003")}
    with pytest.raises(SecureAggregationError, match="not signed by its key for this round"):
        nodes.reveal("org-000", others)
    with pytest.raises(SecureAggregationError, match="1 survivors signed the set, 4 are needed"):
        nodes.reveal("org-000", {"org-000": nodes.agree("org-000", receipts)})


def test_only_survivors_open_a_sum(federation):
    """A node that dropped cannot stand in for a signature that is missing."""
    nodes = federation()
    receipts = nodes.receipts()
    fewer = {name: receipt for name, receipt in receipts.items() if name != "org-004"}
    signatures = {name: nodes.agree(name, fewer) for name in ("org-000", "org-001", "org-002")}
    sets = (encoded_names(receipts), encoded_names(fewer))
    signer = nodes.members["org-004"].signer
    signatures["org-004"] = sign(signer, "agreement", nodes.context(), "org-004", *sets)
    with pytest.raises(SecureAggregationError, match="3 survivors signed the set, 4 are needed"):
        nodes.reveal("org-000", signatures)


def test_nobody_reveals_both_shares_of_a_node(federation, tmp_path):
    """A second set is refused even when the signatures of t colluders and the old secrets are at hand."""
    nodes = federation()
    receipts = nodes.receipts()
    fewer = {name: receipt for name, receipt in receipts.items() if name != "org-004"}
    before = dict(nodes.secrets)
    first = {name: nodes.agree(name, receipts) for name in receipts}
    nodes.reveal("org-000", first)
    forgetful = {
        name: dataclasses.replace(member, store=ReleaseStore(tmp_path / "new" / name))
        for name, member in nodes.members.items()
    }
    agreed = {name: agree(before[name], forgetful[name], fewer) for name in fewer}
    second = {name: signature for name, (_, signature) in agreed.items()}
    with pytest.raises(SecureAggregationError, match="another request was revealed before"):
        reveal(agreed["org-000"][0], nodes.members["org-000"], second)


def test_no_reveal_holds_both_shares(federation):
    nodes = federation()
    receipts = nodes.receipts()
    fewer = {name: receipt for name, receipt in receipts.items() if name != "org-004"}
    signatures = {name: nodes.agree(name, fewer) for name in fewer}
    message = nodes.reveal("org-000", signatures)
    for name, held in nodes.secrets["org-000"].shares.items():
        seed_share, key_share = held[:32], held[32:]
        assert (seed_share in message) == (name != "org-004")
        assert (key_share in message) == (name == "org-004")


def test_a_survivor_that_masked_against_others_is_refused(federation):
    """Else its partners could all be said to have dropped, and its mask be opened."""
    nodes = federation(6)
    boxes = nodes.inboxes(nodes.share(nodes.advertise(nodes.context())))
    boxes["org-000"].pop("org-005")
    receipts = {name: nodes.mask(name, box)[1] for name, box in boxes.items()}
    with pytest.raises(SecureAggregationError, match="receipt of 'org-000' is not signed"):
        nodes.agree("org-001", receipts)


def test_a_node_that_dealt_nothing_is_no_survivor(federation):
    """Else a colluding node that took no part would fill up the quorum."""
    nodes = federation(6)
    messages = nodes.advertise(nodes.context(), [name for name in nodes.members if name != "org-005"])
    boxes = nodes.inboxes(nodes.share(messages))
    receipts = {name: nodes.mask(name, box)[1] for name, box in boxes.items()}
    signer, content = nodes.members["org-005"].signer, bytes(32)
    signature = sign(signer, "receipt", nodes.context(), "org-005", content, encoded_names(receipts))
    with pytest.raises(SecureAggregationError, match="survivor 'org-005' dealt no share"):
        nodes.agree("org-000", receipts | {"org-005": content + signature})


def test_a_vector_is_masked_once(federation):
    """Two masked vectors of a round, or with other partners, differ by what is to be hidden."""
    nodes = federation(6)
    boxes = nodes.inboxes(nodes.share(nodes.advertise(nodes.context())))
    before, box = nodes.secrets["org-000"], boxes["org-000"]
    nodes.mask("org-000", box)
    fewer = {dealer: message for dealer, message in box.items() if dealer != "org-005"}
    for values, inbox in ((nodes.values["org-000"], fewer), (nodes.values["org-001"], box)):
        with pytest.raises(SecureAggregationError, match="another request was masked before"):
            mask(before, nodes.members["org-000"], to_residues(values, 8, 1), inbox)


def test_terms_other_than_the_agreed_are_refused(federation):
    """A threshold, a least number or a number of colluders below the agreed ones; above them just so."""
    nodes = federation(6)
    for changes in ({"threshold": 5}, {"least_nodes": 2}, {"least_nodes": 4}, {"colluders": 1}):
        with pytest.raises(TermsRefused, match="agreed is") as caught:
            advertise(nodes.context(**changes), nodes.members["org-000"])
        assert caught.value.rule == "threshold"
    with pytest.raises(TermsRefused, match="3 of 6 nodes could open two sums"):
        nodes.context(threshold=3)
    assert not list(nodes.members["org-000"].store.folder.glob("*"))


def test_every_roster_but_the_pinned_one_is_refused(federation):
    """Smaller ones, with a stranger in them, under another key; also where the numbers would fit them."""
    nodes = federation(5)
    full, own = nodes.context().roster, nodes.members["org-000"]
    stranger = Signer.generate().public
    for roster, words in (
        (full[:4], "the roster has 4 of 5 nodes: 'org-004' is not in it"),
        (full[:3], "the roster has 3 of 5 nodes"),
        ((*full, ("sybil", stranger)), "holds 'sybil' with a key that is not pinned"),
        ((*full[:4], ("org-004", stranger)), "holds 'org-004' with a key that is not pinned"),
        ((*full[:2], ("sybil", stranger)), "holds 'sybil'"),
    ):
        threshold = max(len(roster) * 2 // 3 + 1, 3)
        with pytest.raises(TermsRefused, match=words) as caught:
            advertise(nodes.context(roster=roster, threshold=threshold), own)
        assert caught.value.rule == "roster"
    fewer = dataclasses.replace(own, roster=dict(full[:3]))
    with pytest.raises(TermsRefused, match="3 nodes are pinned for a sum of 5"):
        advertise(nodes.context(), fewer)
    with pytest.raises(TermsRefused, match="does not hold 'org-000' with this node's key"):
        advertise(nodes.context(), dataclasses.replace(own, signer=Signer.generate()))
    assert not list(own.store.folder.glob("*"))


@pytest.mark.parametrize("change", [{"state": b"m" * 32}, {"public": b"p" * 32}, {"size": 299}, {"bits": 16}])
def test_a_round_has_one_set_of_terms(federation, change):
    """Another attempt differs in its number alone, also for a node that was started anew."""
    nodes = federation()
    nodes.advertise(nodes.context())
    nodes.members = {
        name: dataclasses.replace(member, store=ReleaseStore(member.store.folder))
        for name, member in nodes.members.items()
    }
    assert nodes.advertise(nodes.context(attempt=1))
    with pytest.raises(TermsRefused, match="another request was accepted before") as caught:
        nodes.advertise(nodes.context(attempt=2, **change))
    assert caught.value.rule == "round"
    assert nodes.advertise(nodes.context(round=2, **change))


def test_a_round_has_one_roster_although_the_pins_were_changed(federation):
    """An operator who pins anew between two attempts does not open a round to a second roster."""
    nodes = federation(6)
    nodes.advertise(nodes.context())
    roster, cohort = nodes.context().roster[:5], Cohort(5, 4, 3, 0)
    member = dataclasses.replace(nodes.members["org-000"], roster=dict(roster), cohort=cohort)
    with pytest.raises(TermsRefused, match="another request was accepted before"):
        advertise(nodes.context(attempt=1, roster=roster, threshold=4), member)


def test_a_restart_does_not_forget_which_terms_were_accepted(federation, monkeypatch):
    """They are on the disk before the keys leave: a death at any moment leaves them, or no keys."""
    from fedpeft.secagg import node

    nodes = federation()
    monkeypatch.setattr(node, "fresh_secret", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nodes.advertise(nodes.context())
    monkeypatch.undo()
    with pytest.raises(TermsRefused, match="another request was accepted before"):
        nodes.advertise(nodes.context(attempt=1, state=b"m" * 32))


def test_a_small_cohort_is_refused_at_each_step(federation):
    nodes = federation()
    context = nodes.context()
    messages = nodes.advertise(context)
    few = ["org-000", "org-001", "org-002"]
    with pytest.raises(SecureAggregationError, match="3 nodes advertised keys, a secure sum needs 4"):
        nodes.share({name: messages[name] for name in few})
    boxes = nodes.inboxes(nodes.share(messages))
    with pytest.raises(SecureAggregationError, match="3 nodes dealt shares, a secure sum needs 4"):
        nodes.mask("org-000", {name: boxes["org-000"][name] for name in few})
    receipts = {name: nodes.mask(name, box)[1] for name, box in boxes.items()}
    with pytest.raises(SecureAggregationError, match="3 nodes survived, a secure sum needs 4"):
        nodes.agree("org-000", {name: receipts[name] for name in few})


def test_the_least_number_of_nodes_counts_beside_the_threshold(federation):
    nodes = federation(6, least_nodes=5, colluders=1)
    context = nodes.context()
    messages = nodes.advertise(context)
    few = {name: message for name, message in messages.items() if name != "org-005"}
    with pytest.raises(SecureAggregationError, match="5 nodes advertised keys, a secure sum needs 6"):
        nodes.share(few)
    with pytest.raises(SecureAggregationError, match="5 nodes advertised keys, 6 are needed"):
        nodes.run(context=context, before=["org-005"])


def test_a_signature_serves_one_kind_of_message(federation):
    """No node can be brought to sign one statement by being asked for another."""
    nodes = federation()
    kinds = ("advertisement", "receipt", "agreement", "reveal")
    for kind in kinds:
        signature = sign(nodes.members["org-000"].signer, kind, nodes.context(), "org-000", b"content")
        check(signature, kind, nodes.context(), "org-000", b"content")
        for other in (name for name in kinds if name != kind):
            with pytest.raises(SecureAggregationError, match="not signed"):
                check(signature, other, nodes.context(), "org-000", b"content")


def test_nodes_that_start_from_different_models_share_nothing(federation, tmp_path):
    nodes = federation()
    messages = nodes.advertise(nodes.context())
    forgetful = dataclasses.replace(nodes.members["org-001"], store=ReleaseStore(tmp_path / "new"))
    _, other = advertise(nodes.context(state=b"m" * 32), forgetful)
    with pytest.raises(SecureAggregationError, match="'org-001' is not signed by its key for this round"):
        share(nodes.secrets["org-000"], messages | {"org-001": other})


def test_masks_under_different_models_do_not_cancel(federation):
    """Even the very same X25519 keys give unrelated masks under another context."""
    from fedpeft.secagg.masks import add_pair

    nodes = federation()
    total = np.zeros(4096, np.uint8)
    add_pair(nodes.context(), total, "org-000", "org-001", b"k" * 32)
    add_pair(nodes.context(), total, "org-001", "org-000", b"k" * 32)
    assert not total.any()
    add_pair(nodes.context(), total, "org-000", "org-001", b"k" * 32)
    add_pair(nodes.context(state=b"m" * 32), total, "org-001", "org-000", b"k" * 32)
    assert len(np.unique(total)) > 240


@pytest.mark.parametrize("change", [{"round": 2}, {"attempt": 1}, {"run": b"R" * 16}, {"public": b"p" * 32}])
def test_replayed_messages_are_refused(federation, tmp_path, change):
    """Each message of another round or attempt, with the keys of the members unchanged."""
    nodes = federation()
    coordinator = nodes.run()
    old = dict(nodes.secrets)
    reveals = {name: nodes.reveal(name, coordinator.signatures()) for name in nodes.members}
    stores = {
        n: dataclasses.replace(m, store=ReleaseStore(tmp_path / "new" / n)) for n, m in nodes.members.items()
    }
    nodes.members = stores
    messages = nodes.advertise(nodes.context(**change))
    with pytest.raises(SecureAggregationError, match="advertisement of 'org-001' is not signed"):
        nodes.share(messages | {"org-001": old["org-001"].advertisement})
    boxes = nodes.inboxes(nodes.share(messages))
    with pytest.raises(SecureAggregationError, match="share of 'org-001' does not open"):
        nodes.mask("org-000", boxes["org-000"] | {"org-001": old["org-001"].messages["org-000"]})
    new = nodes.run(context=nodes.context(**change), silent=["org-001"])
    receipts = {name: secrets.receipt for name, secrets in nodes.secrets.items()}
    with pytest.raises(SecureAggregationError, match="receipt of 'org-001' is not signed"):
        nodes.agree("org-000", receipts | {"org-001": old["org-001"].receipt})
    with pytest.raises(SecureAggregationError, match="agreement of 'org-001' is not signed"):
        nodes.reveal("org-000", new.signatures() | {"org-001": coordinator.signatures()["org-001"]})
    with pytest.raises(SecureAggregationError, match="reveal of 'org-001' is not signed"):
        new.add_reveal("org-001", reveals["org-001"])


def test_a_round_is_opened_in_one_attempt_only(federation):
    """The sums of two attempts with different survivors differ by somebody's values."""
    nodes = federation()
    nodes.run()
    with pytest.raises(SecureAggregationError, match="another request was revealed before"):
        nodes.run(context=nodes.context(attempt=1), unmasked=["org-004"])
    assert nodes.run(context=nodes.context(round=2), unmasked=["org-004"]).result() is not None
