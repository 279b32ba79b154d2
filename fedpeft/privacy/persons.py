"""What a plan is for a person: in several nodes at once, and under other caps on a person's records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fedpeft.errors import PrivacyError
from fedpeft.privacy.accounting import COARSE, Event, GridSteps, MixtureSteps, epsilon
from fedpeft.privacy.calibration import noise_multiplier
from fedpeft.privacy.mixture import MOST_RECORDS
from fedpeft.privacy.noise_to_signal import signal
from fedpeft.privacy.plan import PrivacyPlan

CAPS = (1, 2, 4, 8, 16)
"""Records of one person in a step that are compared."""
MOST_ROWS = 8
"""Numbers of nodes that are all listed; of more, the powers of two."""


def event_in_nodes(plan: PrivacyPlan, nodes: int) -> Event:
    """What a run is for one record or person whose data are in so many nodes; no exchange is needed for it.

    Trust ``local``: each node's steps are releases of their own, and all of them compose. Trust
    ``distributed``: all nodes draw by their own coins and add to one sum, so that Binomial(nodes, rate) clips
    are in it, each rounded by itself.

    Raises:
        PrivacyError: nodes as units, no node, or more records of one unit in a sum than can be accounted for.
    """
    if plan.unit == "node" or nodes < 1:
        raise PrivacyError(f"a {plan.unit} in {nodes} nodes: give a record or a person, and 1 node or more")
    event = plan.event()
    if plan.trust == "local" or plan.reproducible:
        return event._replace(repeats=event.repeats * nodes)
    assert isinstance(event, GridSteps | MixtureSteps)
    records = nodes * (event.records if isinstance(event, MixtureSteps) else 1)
    if records > MOST_RECORDS:
        raise PrivacyError(f"{records} records of one {plan.unit} in a sum, allowed are {MOST_RECORDS}")
    rate, noise = event.sampling_probability, event.noise_multiplier
    return MixtureSteps(rate, noise, records, min(0.5, nodes * event.failure), event.repeats)


def epsilon_in_nodes(plan: PrivacyPlan, nodes: int) -> list[tuple[int, float]]:
    """Joint epsilon at the plan's delta for a unit that is in 1, 2, ... of ``nodes`` nodes; upper bounds."""
    counts = range(1, nodes + 1)
    listed = counts if nodes <= MOST_ROWS else sorted({nodes, *(2**power for power in range(8))} & {*counts})
    rows = list[tuple[int, float]]()
    for count in listed:
        try:
            event = event_in_nodes(plan, count)
        except PrivacyError:
            break
        rows.append((count, epsilon([event], plan.delta, COARSE)))
    return rows


@dataclass(frozen=True)
class Cap:
    """Noise under one cap at equal epsilon, where records (ELS) or persons (ULS) are drawn.

    Attributes:
        records: of one person in a step, at most.
        by_record: noise over signal of the whole run where records are drawn and clipped.
        by_person: where persons are: the clip holds the mean of their records' gradients.
        break_even: drawing persons is less noisy where that mean is shorter than so many gradients of a
            record, the clip following the length; ``1 / sqrt(records)`` if they are independent.
    """

    records: int
    by_record: float
    by_person: float

    @property
    def break_even(self) -> float:
        """See the class."""
        return self.by_record / self.by_person


def caps(plan: PrivacyPlan, size: int, nodes: int) -> Iterator[Cap]:
    """The same epsilon, persons and records a step under each of `CAPS`; some seconds each.

    Every person counts as having as many records as the cap. A step draws as many records as the plan's own,
    or all that are eligible where those are fewer.

    Args:
        plan: of unit person, with a guarantee.
        size: number of values that bear noise.
        nodes: of the federation.

    Raises:
        PrivacyError: the plan has no persons, or no noise reaches its epsilon.
    """
    if plan.unit != "person" or plan.reproducible:
        raise PrivacyError(f"caps are for privacy.unit = 'person' with a guarantee, not {plan.unit!r}")
    target, drawn = plan.epsilon(), plan.expected_batch_size
    persons = drawn / plan.sampling_probability
    if plan.drawn == "unit":
        drawn *= plan.records_per_unit
    else:
        persons /= plan.records_per_unit

    def noise(cap: int, by_record: bool) -> float:
        batch = min(drawn, persons * cap) / (1 if by_record else cap)
        other = replace(
            plan,
            drawn="record" if by_record else "unit",
            records_per_unit=cap,
            sampling_probability=min(1.0, drawn / (persons * cap)),
            expected_batch_size=max(1, round(batch)),
        )
        calibrated = other.with_noise(noise_multiplier(other, target))
        return signal(calibrated, size, nodes).whole_run

    for cap in CAPS:
        yield Cap(cap, noise(cap, True), noise(cap, False))
