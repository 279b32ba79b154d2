"""Pages that a person completes: what the run knows is filled in, and what it does not know is left empty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedpeft_attacks.results.measures import Facts
from fedpeft_attacks.results.words import Verdict

RiskName = Literal["membership", "text", "labels", "memory", "epsilon"]


class Entry(Facts):
    """One thing that is asked."""

    asked: str
    answer: str | None = Field(
        default=None, description="from the run; null: the run does not know it, a person fills it in"
    )
    see: str | None = Field(default=None, description="section of report.html with the details")


class Chapter(Facts):
    """Entries under one heading."""

    title: str
    entries: tuple[Entry, ...]


class AssessedRisk(Facts):
    """One risk to people before and after the measures: evidence from the run, ratings from a person."""

    name: RiskName
    risk: str
    harm: str
    before: str = Field(description="what the attacks reach with all protections off")
    after: str = Field(description="what they reach in this run, in words")
    verdict: Verdict
    likelihood_before: str | None = None
    severity_before: str | None = None
    likelihood_after: str | None = None
    severity_after: str | None = None
    residual: str | None = None


class Assessment(Facts):
    """One page to complete."""

    name: Literal["dpia", "sp-800-226"]
    title: str
    chapters: tuple[Chapter, ...]
    risks: tuple[AssessedRisk, ...] = Field(default=(), description="of a DPIA; ratings are a person's")
