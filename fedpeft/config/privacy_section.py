"""The settings of differential privacy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedpeft.config.section import Section

Unit = Literal["none", "record", "person", "node"]
Trust = Literal["local", "central", "distributed"]


class PrivacyConfig(Section):
    """Differential privacy; off by default and then said so everywhere."""

    unit: Unit = Field(default="none", description="what is protected; none: no DP")
    trust: Trust = Field(
        default="local", description="who adds the noise: the node, the coordinator, or all nodes together"
    )
    epsilon: float | None = Field(default=None, gt=0, description="target; solves for the noise multiplier")
    delta: float = Field(default=1e-5, gt=0, lt=1, description="failure probability of the guarantee")
    noise_multiplier: float | None = Field(
        default=None, gt=0, description="noise / clip (with loss_share: the joint clip); instead of epsilon"
    )
    clip: float = Field(
        default=1.0, gt=0, description="L2 bound of one unit's gradient, or of a node's update"
    )
    sampling_probability: float | None = Field(
        default=None, gt=0, le=1, description="public Poisson rate; default batch_size / public_records"
    )
    public_records: int | None = Field(
        default=None, ge=1, description="public lower bound on a node's records, or persons"
    )
    records_per_person: int = Field(
        default=1, ge=1, description="unit person: the most records of one person that a step uses"
    )
    sampling: Literal["person", "record"] = Field(
        default="person",
        description="unit person: draw and clip persons (ULS), or their records one by one (ELS)",
    )
    noise: Literal["gaussian", "discrete"] = Field(
        default="gaussian",
        description="trust local: discrete adds integers, so that no rounding of the noise tells anything",
    )
    bands: int = Field(
        default=1,
        ge=1,
        description="bands of correlated noise: of local_steps (trust local), of rounds in turns (central)",
    )
    adaptive_clip: bool = Field(default=False, description="trust central: follow a quantile of the norms")
    clip_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="quantile that an adaptive clip follows"
    )
    clip_lr: float = Field(default=0.2, gt=0, description="step of an adaptive clip, in the logarithm")
    loss_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="trust local: release a noisy training loss, at this share of the clip; all noise grows "
        "by sqrt(1 + loss_share^2); 0: no loss leaves",
    )
    loss_cap: float = Field(
        default=10.0, ge=0.001, le=1000, description="nats that a record's released loss is cut to"
    )
    max_noise_to_signal: float = Field(
        default=1.0,
        gt=0,
        description="refuse a plan whose noise over the run exceeds this multiple of the largest signal",
    )
    budget: float | None = Field(
        default=None, gt=0, description="the node's own limit on epsilon; default: epsilon"
    )
    yearly_budget: float | None = Field(
        default=None, gt=0, description="the node's own limit on epsilon within 365 days"
    )
    randomness: Literal["system", "seeded"] = Field(
        default="system", description="seeded: reproducible, and therefore marked as not private"
    )
