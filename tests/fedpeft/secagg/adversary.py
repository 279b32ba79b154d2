"""A coordinator with colluding nodes that plays one round of a secure sum against the nodes' own code."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from fedpeft.secagg import (
    Member,
    ReleaseStore,
    SecureAggregationError,
    SecureContext,
    advertise,
    agree,
    from_residues,
    mask,
    reveal,
    share,
    to_residues,
)
from fedpeft.secagg.messages import encoded_names, sign
from fedpeft.secagg.shamir import join
from fedpeft.trust import Signer

SIZE = 6
ATTEMPTS = 2


class Memory:
    """A `ReleaseStore` without a disk, which a play can be begun from anew."""

    def __init__(self, held=None):
        self.held = dict(held or {})

    def once(self, context, step, data):
        place = (context.round, step if step in ("accepted", "revealed") else (context.attempt, step))
        if self.held.setdefault(place, (context.digest, data)) != (context.digest, data):
            raise SecureAggregationError("before")

    def copy(self):
        return Memory(self.held)


class Disk(ReleaseStore):
    """The real one; plays over it go on from each other."""

    def copy(self):
        return self


class Forgetful(Memory):
    """A colluder's."""

    def once(self, context, step, data):
        del context, step, data

    def copy(self):
        return self


@dataclass
class Attempt:
    """One attempt as far as masked vectors: what the coordinator holds, and each node's secrets."""

    context: SecureContext
    secrets: dict
    masked: dict
    receipts: dict


class Game:
    """A round with ``cohort.colluders`` nodes on the coordinator's side; node 0 is the one it is after."""

    def __init__(self, cohort, present=None):
        self.cohort = cohort
        self.names = [f"n{index:02}" for index in range(cohort.nodes)]
        self.evil = set(self.names[cohort.nodes - cohort.colluders :])
        self.honest = [name for name in self.names if name not in self.evil]
        signers = {name: Signer.from_seed(name.encode().ljust(32)) for name in self.names}
        self.roster = {name: signers[name].public for name in self.names}
        self.stores = {name: Forgetful() if name in self.evil else Memory() for name in self.names}
        self.members = {
            name: Member(name, signers[name], self.stores[name], self.roster, cohort) for name in self.names
        }
        draw = np.random.default_rng(0)
        self.values = {name: draw.integers(-9, 10, SIZE) for name in self.names}
        present = present or [self.names] * ATTEMPTS
        self.attempts = [self._masked(number, names) for number, names in enumerate(present, 1)]

    def context(self, number, roster=None):
        table = tuple(sorted((roster or self.roster).items()))
        cohort = self.cohort
        numbers = (cohort.threshold, cohort.least_nodes)
        return SecureContext(
            b"r" * 16, 1, number, bytes(32), table, *numbers, SIZE, 16, bytes(32), cohort.colluders
        )

    def _masked(self, number, present):
        context = self.context(number)
        made = {name: advertise(context, self.members[name]) for name in present}
        adverts = {name: message for name, (_, message) in made.items()}
        dealt = {name: share(secrets, adverts) for name, (secrets, _) in made.items()}
        secrets, masked, receipts = {}, {}, {}
        for name in present:
            box = {dealer: messages[name] for dealer, (_, messages) in dealt.items()}
            residues = to_residues(self.values[name], 16)
            step = mask(dealt[name][0], self.members[name], residues, box)
            secrets[name], masked[name], receipts[name] = step
        return Attempt(context, secrets, masked, receipts)

    def play(self, survivors, revealers):
        """What is opened when the others sign and let go as asked.

        Args:
            survivors: said to have survived, one set per attempt.
            revealers: of the others, whom to ask to open which attempt.

        Returns:
            Attempts of which the sum over their survivors is known.
        """
        stores = {name: store.copy() for name, store in self.stores.items()}
        members = {name: replace(self.members[name], store=stores[name]) for name in self.names}
        held = [self._signed(at, survivors[at], members) for at in range(len(self.attempts))]
        opened = []
        for at, attempt in enumerate(self.attempts):
            secrets, signatures = held[at]
            shares = {name: self._shares(secrets[name]) for name in self.evil & set(attempt.secrets)}
            for name in revealers[at]:
                try:
                    message = reveal(secrets[name], members[name], signatures)
                except (SecureAggregationError, KeyError):
                    continue
                dealers = sorted(attempt.secrets[name].shares)
                shares[name] = {
                    d: {d in survivors[at]: message[32 * i :][:32]} for i, d in enumerate(dealers)
                }
            if self._sum(attempt, survivors[at], shares) is not None:
                opened.append(at)
        return opened

    def _signed(self, at, survivors, members):
        """Secrets after `agree` of all who sign this set, and the signatures, those of colluders too."""
        attempt, secrets, signatures = self.attempts[at], {}, {}
        receipts = {name: attempt.receipts[name] for name in survivors}
        for name in survivors:
            try:
                secrets[name], signatures[name] = agree(attempt.secrets[name], members[name], receipts)
            except SecureAggregationError:
                continue
        sets = (encoded_names(attempt.secrets), encoded_names(survivors))
        for name in self.evil & set(attempt.secrets):
            secrets[name] = attempt.secrets[name]
            signatures[name] = sign(members[name].signer, "agreement", attempt.context, name, *sets)
        return secrets, signatures

    @staticmethod
    def _shares(secrets):
        """Both shares of everybody, which a colluder holds: by dealer and by whether it is the seed's."""
        return {dealer: {True: both[:32], False: both[32:]} for dealer, both in secrets.shares.items()}

    def _sum(self, attempt, survivors, shares):
        """The sum over the survivors if enough shares are known to lay it open, checked; else None."""
        from fedpeft.secagg.masks import add_pair, add_self, exchange

        total = np.zeros(SIZE, np.uint16)
        for name in survivors:
            total += attempt.masked[name]
        for dealer in attempt.secrets:
            kind = dealer in survivors
            known = {n: s[dealer][kind] for n, s in shares.items() if kind in s.get(dealer, {})}
            if len(known) < self.cohort.threshold:
                return None
            points = sorted(known)[: self.cohort.threshold]
            secret = join({attempt.context.point(name): known[name] for name in points})
            if kind:
                add_self(attempt.context, total, dealer, secret, -1)
                continue
            for peer in survivors:
                public = attempt.secrets[peer].peers[peer][:32]
                add_pair(attempt.context, total, dealer, peer, exchange(secret, public, peer))
        assert from_residues(total, 16).tolist() == sum(self.values[name] for name in survivors).tolist()
        return total


def plays(game):
    """Every choice of survivors and revealers, but for the order of nodes that are alike."""
    honest, evil = game.honest, sorted(game.evil)
    seen = set()
    for survivors in itertools.product(subsets(honest), repeat=len(game.attempts)):
        for roles in itertools.product(range(len(game.attempts) + 1), repeat=len(honest)):
            alike = sorted(
                (tuple(name in group for group in survivors), role)
                for name, role in zip(honest, roles, strict=True)
                if name != honest[0]
            )
            key = (tuple(honest[0] in group for group in survivors), roles[0], tuple(alike))
            absent = any(
                not group <= set(attempt.secrets)
                for group, attempt in zip(survivors, game.attempts, strict=True)
            )
            if (
                key in seen
                or absent
                or any(
                    role and name not in survivors[role - 1] for name, role in zip(honest, roles, strict=True)
                )
            ):
                continue
            seen.add(key)
            revealers = [
                [name for name, role in zip(honest, roles, strict=True) if role == at + 1]
                for at in range(len(game.attempts))
            ]
            yield [{*group, *evil} for group in survivors], revealers


def subsets(names):
    """All of them, the empty one first."""
    return [set(one) for count in range(len(names) + 1) for one in itertools.combinations(names, count)]
