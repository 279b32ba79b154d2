"""All nodes of a federation that sums securely."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fedpeft.cohort import Cohort
from fedpeft.secagg import (
    CoordinatorRound,
    Member,
    NodeSecrets,
    ReleaseStore,
    SecureContext,
    advertise,
    agree,
    from_residues,
    mask,
    reveal,
    share,
    to_residues,
)
from fedpeft.trust import Signer

SIZE = 300


class Nodes:
    """All nodes of a federation; secrets pass through bytes after each step."""

    def __init__(self, folder, count=5, least_nodes=3, colluders=0):
        names = [f"org-{i:03}" for i in range(count)]
        signers = {name: Signer.generate() for name in names}
        roster = {name: signer.public for name, signer in signers.items()}
        threshold = max(-(-2 * count // 3), (count + colluders) // 2 + 1)
        self.cohort = Cohort(count, threshold, min(least_nodes, count), colluders)
        self.members = {
            name: Member(name, signer, ReleaseStore(folder / name), roster, self.cohort)
            for name, signer in signers.items()
        }
        draw = np.random.default_rng(count)
        self.values = {name: draw.integers(-1, 2, SIZE) for name in names}
        self.secrets: dict[str, NodeSecrets] = {}

    def context(self, **changes):
        roster = tuple((name, member.signer.public) for name, member in self.members.items())
        fields = dict(run=b"r" * 16, round=1, attempt=0, state=bytes(32), roster=roster, public=bytes(32))
        fields |= dict(threshold=self.cohort.threshold, least_nodes=self.cohort.least_nodes)
        fields |= dict(colluders=self.cohort.colluders, size=SIZE, bits=8)
        return SecureContext(**(fields | changes))

    def keep(self, name, secrets):
        self.secrets[name] = NodeSecrets.from_bytes(secrets.to_bytes())

    def advertise(self, context, names=None):
        messages = {}
        for name in names or self.members:
            secrets, messages[name] = advertise(context, self.members[name])
            self.keep(name, secrets)
        return messages

    def share(self, advertisements):
        dealt = {}
        for name in advertisements:
            secrets, dealt[name] = share(self.secrets[name], advertisements)
            self.keep(name, secrets)
        return dealt

    def mask(self, name, inbox, values=None):
        residues = to_residues(self.values[name] if values is None else values, 8, 1)
        secrets, masked, receipt = mask(self.secrets[name], self.members[name], residues, inbox)
        self.keep(name, secrets)
        return masked, receipt

    def agree(self, name, receipts):
        secrets, signature = agree(self.secrets[name], self.members[name], receipts)
        self.keep(name, secrets)
        return signature

    def reveal(self, name, signatures):
        return reveal(self.secrets[name], self.members[name], signatures)

    def sum(self, names):
        return sum(self.values[name] for name in names)

    @staticmethod
    def inboxes(dealt):
        return {name: {dealer: messages[name] for dealer, messages in dealt.items()} for name in dealt}

    def receipts(self):
        """All nodes have masked against all; their receipts."""
        boxes = self.inboxes(self.share(self.advertise(self.context())))
        return {name: self.mask(name, box)[1] for name, box in boxes.items()}

    def run(self, *, before=(), unmasked=(), unsigned=(), silent=(), context=None):
        """A whole round with nodes that drop at each point; the coordinator afterwards."""
        coordinator = CoordinatorRound(context or self.context())
        alive = [name for name in self.members if name not in before]
        for name, message in self.advertise(coordinator.context, alive).items():
            coordinator.add_advertisement(name, message)
        for name, messages in self.share(coordinator.advertisements()).items():
            coordinator.add_shares(name, messages)
        for name, inbox in coordinator.inboxes().items():
            if name not in unmasked:
                coordinator.add_masked(name, *self.mask(name, inbox))
        receipts = coordinator.receipts()
        for name in set(receipts) - set(unsigned):
            coordinator.add_signature(name, self.agree(name, receipts))
        signatures = coordinator.signatures()
        for name in set(signatures) - set(silent):
            coordinator.add_reveal(name, self.reveal(name, signatures))
        return coordinator

    @staticmethod
    def opened(coordinator):
        return from_residues(coordinator.result(), 8, len(coordinator.survivors))


@pytest.fixture
def federation(tmp_path):
    """Makes the nodes, with stores below the test's folder."""
    return partial(Nodes, tmp_path)
