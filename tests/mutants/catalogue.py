"""All mutants, by number: docs/privacy-bugs.md shows those of known bugs (1 to 38) as a table."""

from __future__ import annotations

import of_accounting
import of_bands
import of_federation
import of_fence
import of_ledger
import of_loss
import of_node
import of_persons
import of_promises
import of_review
import of_steps
from harness import Mutant

MUTANTS: tuple[Mutant, ...] = tuple(
    sorted(
        (
            *of_steps.MUTANTS,
            *of_accounting.MUTANTS,
            *of_ledger.MUTANTS,
            *of_federation.MUTANTS,
            *of_review.MUTANTS,
            *of_promises.MUTANTS,
            *of_node.MUTANTS,
            *of_loss.MUTANTS,
            *of_persons.MUTANTS,
            *of_fence.MUTANTS,
            *of_bands.MUTANTS,
        ),
        key=lambda mutant: mutant.number,
    )
)
