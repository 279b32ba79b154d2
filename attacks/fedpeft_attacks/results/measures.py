"""Figures with interval and baselines: what every finding of the report is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Unit = Literal["share", "bits", "auc", "epsilon"]

TOKENS, RARE = "tokens", "rare tokens"
SEQUENCES, SECRETS = "exact sequences", "personal data"
MEMBERS = "members at 1 % false alarms"
"""Measures in the table of leakage by pipeline stage; other measures have names of their own."""


class Facts(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Baselines(Facts):
    """What the same figure is without the update, or the adapter, in question."""

    chance: float = Field(description="a guess at random: 0.5 for auc, 0 or near it for the other units")
    prior: float | None = Field(default=None, description="what the base alone gives; null: not asked")
    control: float | None = Field(
        default=None, description="the same attack on other data; null: none was at hand"
    )

    @property
    def best(self) -> float:
        """The baseline that a leak has to exceed."""
        return max(self.chance, self.prior or 0.0, self.control or 0.0)


class Measure(Facts):
    """One figure of an attack."""

    name: str = Field(description="what is counted, such as 'tokens' or 'exact sequences'")
    unit: Unit = Field(description="share and auc: 0 to 1; bits: exposure; epsilon: a lower bound")
    value: float
    interval: tuple[float, float] = Field(description="95 %")
    baselines: Baselines
    count: int = Field(ge=0, description="true tokens, records or secrets that the figure rests on")

    @property
    def excess(self) -> float:
        """How far the figure exceeds its best baseline."""
        return self.value - self.baselines.best


class WorkDone(Facts):
    """What an attack did, in steps that are the same on every machine."""

    views: int = Field(ge=0, description="updates that were attacked")
    steps: int = Field(ge=0, description="iterations of the search, over all views")
    allowed: int | None = Field(
        ge=1, description="budget of steps for each view; null: the search ends by itself"
    )
    cut: int = Field(ge=0, description="views in which the budget ended the search before it was exhausted")
    stopped: int = Field(ge=0, description="views in which the safety stop of seconds did: not finished")


class Strength(Facts):
    """What the same attack recovers with all protections off: where that is little, silence means little."""

    text: str = Field(description="what was attacked, in plain words")
    shares: dict[str, float | None] = Field(
        description="share recovered there by what it is a share of, such as 'the tokens of a batch'"
    )
    work: dict[str, WorkDone] = Field(
        default_factory=dict, description="what was done for each share, with the budget of the audit itself"
    )

    @property
    def is_finished(self) -> bool:
        """Whether no trial was ended by the safety stop."""
        return not any(done.stopped for done in self.work.values())

    @property
    def least(self) -> float | None:
        """What is recovered in the hardest of the trials; None where none is known."""
        return min((share for share in self.shares.values() if share is not None), default=None)


def written(value: float | None, unit: Unit = "share") -> str:
    """A figure for people; a dash where there is none.

    >>> written(0.123), written(2.25, "bits"), written(0.5, "auc"), written(None)
    ('12 %', '2.2 bits', '0.50', '–')
    """
    if value is None:
        return "–"
    forms = {"share": f"{100 * value:.0f} %", "bits": f"{value:.1f} bits", "auc": f"{value:.2f}"}
    return forms.get(unit, f"{value:.2f}")


def spanned(interval: tuple[float, float], unit: Unit = "share") -> str:
    """An interval for people.

    >>> spanned((0.1, 0.25)), spanned((0.48, 0.61), "auc")
    ('10–25 %', '0.48–0.61')
    """
    low, high = (written(value, unit).split(" ") for value in interval)
    return " ".join([f"{low[0]}–{high[0]}", *high[1:]])
