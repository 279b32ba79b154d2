"""What a claim of differential privacy allows any test of membership to reach."""

from __future__ import annotations

import math

from fedpeft.privacy import PrivacyPlan
from fedpeft_attacks.results.measures import Measure
from fedpeft_attacks.update_membership.contrasts import FALSE_ALARMS


def within_claim(plan: PrivacyPlan, area: Measure, at_few: Measure | None) -> tuple[str, bool]:
    """Whether figures of records that a node has lie within what its claim allows; in words, and if not.

    The claim is about records that are in the data or not. It does not bound how well records that a round
    drew are told from those that it did not draw: it counts on nobody knowing that.

    Args:
        plan: the claim.
        area: of records of the node against records that nobody trained on.
        at_few: share of those records that are found at 1 % false alarms; None: not measured.
    """
    epsilon, delta = plan.epsilon(), plan.delta
    most_area, most_share = allowed_area(epsilon, delta), allowed_share(epsilon, delta, FALSE_ALARMS[0])
    is_broken = _exceeds(area, most_area) or (at_few is not None and _exceeds(at_few, most_share))
    share = "" if at_few is None else f" and {100 * at_few.value:.0f} % of the records at 1 % false alarms"
    return (
        f"the claim (epsilon {epsilon:.3g} at delta {delta:g}) allows an area of {most_area:.2f} and "
        f"{100 * most_share:.0f} % of the records at 1 % false alarms; measured over the audited rounds were "
        f"{area.value:.2f}{share}: {'above what the claim allows' if is_broken else 'within it'}",
        is_broken,
    )


def allowed_share(epsilon: float, delta: float, alarms: float) -> float:
    """The largest share of members that a test finds at a rate of false alarms under (epsilon, delta)-DP.

    >>> round(allowed_share(1.0, 0.0, 0.01), 3), allowed_share(8.0, 0.0, 0.01) > 0.99
    (0.027, True)
    """
    rising = math.exp(min(epsilon, 700.0)) * alarms + delta
    return min(1.0, rising, 1 - math.exp(-epsilon) * (1 - delta - alarms))


def allowed_area(epsilon: float, delta: float) -> float:
    """The largest area under the curve of a test under (epsilon, delta)-DP.

    >>> allowed_area(0.0, 0.0), round(allowed_area(1.0, 0.0), 3)
    (0.5, 0.731)
    """
    return 1 - (1 - delta) ** 2 / (1 + math.exp(min(epsilon, 700.0)))


def _exceeds(measure: Measure, most: float) -> bool:
    """Whether a figure is surely above what is allowed, and above what other data give."""
    return measure.interval[0] > max(most, measure.baselines.control or 0.0)
