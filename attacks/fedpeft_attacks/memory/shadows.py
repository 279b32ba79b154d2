"""Shadow adapters: what a record's loss is where it was trained on, and where it was not.

Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles" (arXiv:2112.03570).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpeft.config import Config, config_hash
from fedpeft.errors import AuditError
from fedpeft.rng import stream
from fedpeft.run_plan import RunPlan
from fedpeft.runstore import write_json
from fedpeft_attacks.memory.membership_scores import confidence, losses
from fedpeft_attacks.memory.statistics import Floats

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example


@dataclass(frozen=True)
class Shadows:
    """Confidences of shadow adapters.

    Attributes:
        confidences: float64, shape ``(shadows, records)``.
        inside: which records each was trained on, shape ``(shadows, records)``.
    """

    confidences: Floats
    inside: NDArray[np.bool_]


def halves(shadows: int, records: int, seed: int) -> NDArray[np.bool_]:
    """Which records each shadow is trained on: every record in a random half of the shadows.

    Args:
        shadows: an even number, at least 4.
        records: number of candidates, members and non-members alike.
        seed: of the draw.

    Raises:
        AuditError: an odd number of shadows, or fewer than 4.
    """
    if shadows < 4 or shadows % 2:
        raise AuditError(f"{shadows} shadows; give an even number, at least 4, or 0 for none")
    order = stream(seed, 0, "", "shadow-halves").random((shadows, records)).argsort(axis=0)
    return order < shadows // 2


def train_shadows(
    attached: Attached, config: Config, candidates: Sequence[Example], shadows: int, cache: Path | None = None
) -> Shadows:
    """Train shadows by the run's own local settings: all its rounds in one place, without an exchange.

    Under DP in the node the shadows bear the same noise, from a seed: they are not released. On return the
    adapter holds the values that it held before.

    Args:
        attached: the run's adapter; its update must be a plain mean.
        config: the run's settings.
        candidates: members and non-members; each shadow is trained on a random half.
        shadows: an even number, at least 4.
        cache: a folder in which the confidences are kept and looked up; None: neither.
    """
    inside = halves(shadows, len(candidates), config.run.seed)
    file = None if cache is None else cache / f"shadows-{_key(config, candidates, shadows)}.json"
    if file is not None and file.is_file():
        return Shadows(np.array(json.loads(file.read_text()), np.float64), inside)
    initial = attached.get()
    try:
        rows = [_confidences(attached, config, candidates, row, place) for place, row in enumerate(inside)]
    finally:
        attached.load(initial)
    confidences = np.stack(rows)
    if file is not None:
        write_json(file, confidences.tolist())
    return Shadows(confidences, inside)


def _confidences(
    attached: Attached,
    config: Config,
    candidates: Sequence[Example],
    inside: NDArray[np.bool_],
    place: int,
) -> Floats:
    from fedpeft.training import Extras, LocalPlan, train_local

    examples = [candidates[int(index)] for index in np.flatnonzero(inside)]
    privacy = RunPlan.from_config(config, attached.layout.size).local
    if privacy is not None:  # of shadows nothing is claimed: their noise comes from a seed
        privacy = replace(privacy, reproducible=True)
    extras = Extras(longest=config.data.max_length)
    attached.reset()
    for round_ in range(1, config.federation.rounds + 1):
        batches = stream(config.run.seed, round_, f"shadow-{place}", "batches")
        train_local(attached, examples, LocalPlan.of(config.federation, round_), batches, privacy, extras)
    return confidence(losses(attached.model, candidates))


def _key(config: Config, candidates: Sequence[Example], shadows: int) -> str:
    digest = hashlib.sha256(f"{config_hash(config)} {shadows}".encode())
    for example in candidates:
        digest.update(np.asarray(example.ids, np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]
