"""Noise that is correlated over a node's local steps and rounds, and the groups of its units.

Each unit is in one of ``b`` groups, by a keyed hash of what it is; step ``t`` draws from group ``t mod b``
alone, at ``b`` times the rate. So a unit takes part at most every ``b``-th step, and there the columns of
``C`` share no row: the run is no more than ``ceil(T / b)`` Poisson-sampled Gaussian releases at that rate.
The proof is in docs/privacy.md.

Source: Choquette-Choo et al. 2023, arXiv:2306.08153, algorithm 2 and theorem 4.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import PrivacyError
from fedpeft.privacy.csprng import Randomness, words
from fedpeft.privacy.matrix import Wide, correlated, optimised
from fedpeft.privacy.plan import PrivacyPlan

KEY_WORDS, HASH_BYTES = 4, 16


@dataclass
class StepMatrix:
    """One matrix of correlated noise, as far as it has come; it lives through the rounds of a run.

    Everything in it is secret. Who knows earlier rows knows most of the next, so that none may be used
    twice: of a matrix that has been used in a step, only what is stored after that step may go on. Where that
    is lost, begin another: what both release is charged, each for itself.

    Attributes:
        column: first column of ``C``, float64, shape ``(bands,)``.
        key: of the hashes that put units into groups, 32 bytes.
        members: hashes of the units that were there in the first round, in order; what has come or was
            edited since takes no part, as it could be a second appearance of a unit that is in another group.
            None: no round yet.
        history: earlier rows of ``C^-1 Z`` of unit scale, newest first, float64, shape
            ``(at most bands - 1, size)``.
        done: steps so far.
    """

    column: Wide
    key: bytes
    members: list[bytes] | None = None
    history: Wide = field(default_factory=lambda: np.zeros((0, 0)))
    done: int = 0

    @classmethod
    def begin(cls, plan: PrivacyPlan, source: Randomness = words) -> StepMatrix:
        """A new matrix with a new key.

        Args:
            plan: of trust ``local``.
            source: of random words; any but the default gives no guarantee.

        Raises:
            PrivacyError: the noise of this plan is none of a node's own steps.
        """
        if plan.trust != "local":
            raise PrivacyError(f"a matrix of local steps needs trust 'local', the plan has {plan.trust!r}")
        return cls(optimised(plan.bands, plan.steps), source(KEY_WORDS).tobytes())

    @property
    def turn(self) -> int:
        """The group that the next step draws from."""
        return self.done % len(self.column)

    def next_row(self, fresh: Wide) -> Wide:
        """One step's row of ``C^-1 Z``, from its row of ``Z``, both of shape ``(size,)``."""
        row, self.history = correlated(self.column, fresh, self.history.reshape(-1, len(fresh)))
        self.done += 1
        return row

    def pools(self, identities: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """Ascending indices of the units of each group.

        A unit's group depends on the unit and the key alone. Of equal units as many take part as there were
        in the first round of the matrix, whose units these are if it had none before.

        Args:
            identities: what each unit is, in any bytes.
        """
        hashes = [hashlib.blake2b(each, key=self.key, digest_size=HASH_BYTES).digest() for each in identities]
        if self.members is None:
            self.members = sorted(hashes)
        left, groups = Counter(self.members), np.full(len(hashes), -1)
        for index, digest in enumerate(hashes):
            if left[digest] > 0:
                left[digest] -= 1
                groups[index] = int.from_bytes(digest, "little") % len(self.column)
        return [np.flatnonzero(groups == group) for group in range(len(self.column))]

    def arrays(self) -> dict[str, np.ndarray]:
        """What has to be stored, as secret as the noise."""
        members = b"".join(self.members or [])
        return {
            "column": self.column,
            "key": np.frombuffer(self.key, np.uint8),
            "members": np.frombuffer(members, np.uint8),
            "history": self.history,
            "done": np.array([self.done]),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray]) -> StepMatrix:
        """The inverse of `arrays` of a matrix that has been used."""
        members = arrays["members"].tobytes()
        hashes = [members[start : start + HASH_BYTES] for start in range(0, len(members), HASH_BYTES)]
        key, done = arrays["key"].tobytes(), int(arrays["done"][0])
        return cls(arrays["column"], key, hashes, arrays["history"], done)
