"""Exchange plans: transforms in order and the codec that carries their result, checked as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.errors import ExchangeError, PlanError
from fedpeft.exchange.codecs.base import Codec, public_support
from fedpeft.exchange.codecs.public_ternary import PublicTernary
from fedpeft.exchange.decoded import Decoded
from fedpeft.exchange.message_context import Context
from fedpeft.exchange.transforms import (
    RESIDUAL,
    AddResidual,
    Clip,
    KeepResidual,
    Metrics,
    Quantise,
    Sparsify,
    State,
    Transform,
    Update,
)
from fedpeft.plugins import CODECS

if TYPE_CHECKING:
    from fedpeft.config.models import DirectionConfig, ExchangeConfig

Tap = Callable[[str, Update], None]

PRIVATE = "residual_private"
"""State: present when the residual comes from private outputs only."""


@dataclass(frozen=True)
class ExchangePlan:
    """Transforms in order, then a codec.

    With ``private`` the plan is run on updates that are already the output of a differentially private
    mechanism (DP-SGD in the node, noise included). Everything in it must then be post-processing, and
    a residual that un-noised rounds left behind is refused: it would carry data past the mechanism.

    Raises:
        PlanError: the order is not sound; the message gives the reason.
    """

    transforms: tuple[Transform, ...]
    codec: Codec
    private: bool = False

    def __post_init__(self) -> None:
        _check_order(self.transforms)
        _check_feedback(self.transforms)
        _check_codec(self.transforms, self.codec)
        _check_bound(self.transforms)
        if self.private:
            _check_private(self.transforms)

    def describe(self) -> list[str]:
        """One line per step, the codec last, as printed in reports."""
        basis = ["input: output of a differentially private mechanism"] if self.private else []
        return [*basis, *(repr(transform) for transform in self.transforms), f"codec: {self.codec.name}"]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the description, 32 bytes; equal plans have equal digests."""
        return hashlib.sha256(b"fedpeft-plan-1\0" + "\n".join(self.describe()).encode()).digest()

    def at(self, context: Context, released: Decoded | None = None) -> ExchangePlan:
        """The plan for one message: supports that both ends share and random draws follow from it.

        Args:
            context: what both ends know of the message.
            released: the newest broadcast delta that the sender has read, if it has.
        """
        steps = tuple(step.at(context, released) for step in self.transforms)
        return replace(self, transforms=steps, codec=self.codec.at(context, released))

    def at_scales(self, exponents: Sequence[int]) -> ExchangePlan:
        """The plan for one round's public scales, where its codec has some."""
        codec = self.codec
        if not isinstance(codec, PublicTernary):
            return self
        codec = codec.at_scales(exponents)
        steps = tuple(Quantise(codec) if isinstance(step, Quantise) else step for step in self.transforms)
        return replace(self, transforms=steps, codec=codec)

    def run(self, update: Update, state: State, tap: Tap | None = None) -> tuple[Update, Metrics]:
        """Pass an update through all transforms.

        The state changes only when every transform has succeeded. The result is what the receiver will
        decode, bit for bit.

        Args:
            update: finite float32 values.
            state: this direction's durable state; residuals are read from and written to it.
            tap: called with name and update after each transform (the audit's view of that stage).

        Returns:
            The update to seal and the metrics, named ``transform.metric``.

        Raises:
            ExchangeError: values are not finite or not float32, or the state does not fit.
        """
        _check_values(update)
        if self.private and RESIDUAL in state and PRIVATE not in state:
            raise PlanError(
                "a private plan was given a residual of rounds without privacy; start with an empty state"
            )
        working: dict[str, NDArray[Any]] = dict(state)
        metrics: Metrics = {}
        for transform in self.transforms:
            update, measured = transform.apply(update, working)
            metrics |= {f"{transform.name}.{key}": value for key, value in measured.items()}
            if tap is not None:
                tap(transform.name, update)
        working.pop(PRIVATE, None)
        if self.private:
            working[PRIVATE] = np.ones(1, np.uint8)
        state.clear()
        state.update(working)
        return update, metrics


def codec_from_config(direction: DirectionConfig) -> Codec:
    """The codec of one direction of a run; see `plan_from_config`."""
    return CODECS[direction.codec].configured(direction)


def up_codec(exchange: ExchangeConfig) -> Codec:
    """The codec of the updates: integers under secure aggregation, else as configured.

    Raises:
        PlanError: the codec has none for a secure sum.
    """
    if not exchange.secure.enabled:
        return codec_from_config(exchange.up)
    if (codec := CODECS[exchange.up.codec].summed(exchange)) is None:
        raise PlanError(f"exchange.secure cannot sum values of codec {exchange.up.codec!r}; take 'ternary'")
    return codec


def up_plan(exchange: ExchangeConfig, private: bool = False, clip: float | None = None) -> ExchangePlan:
    """The plan of the updates.

    Args:
        exchange: the settings of both directions.
        private: whether the updates come out of DP-SGD; see `ExchangePlan`.
        clip: L2 bound of an update, where whole nodes are protected.
    """
    if not exchange.secure.enabled:
        plan = plan_from_config(exchange.up, private)
    else:
        codec = up_codec(exchange)
        rounded: tuple[Transform, ...] = (Quantise(codec),)
        if exchange.up.error_feedback:
            rounded = (AddResidual(), *rounded, KeepResidual())
        plan = ExchangePlan(rounded, codec, private)
    return plan if clip is None else replace(plan, transforms=(Clip(clip), *plan.transforms))


def noisy_values(exchange: ExchangeConfig, size: int) -> int:
    """How many of ``size`` exchanged values bear noise under DP: those of a public support, or all."""
    support = public_support(up_codec(exchange))
    return size if support is None else support.size(size)


def plan_from_config(direction: DirectionConfig, private: bool) -> ExchangePlan:
    """The plan of one direction of a run without secure aggregation.

    Args:
        direction: codec, density and error feedback.
        private: whether the updates come out of DP-SGD; see `ExchangePlan`.
    """
    chain = CODECS[direction.codec].transforms(direction)
    if direction.error_feedback and chain:
        chain = (AddResidual(), *chain, KeepResidual())
    return ExchangePlan(chain, codec_from_config(direction), private)


def _check_order(transforms: tuple[Transform, ...]) -> None:
    names = [transform.name for transform in transforms]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise PlanError(f"{repeated[0]} occurs {names.count(repeated[0])} times in the plan; use it once")
    last = next((i for i, step in enumerate(transforms) if step.rounds_for is not None), None)
    if last is None:
        return
    final = names[last]
    for step in transforms[last + 1 :]:
        if isinstance(step, Sparsify) and final.endswith("ternarise"):
            raise PlanError(
                "ternarise comes before sparsify: all magnitudes of a tensor are then equal and position "
                "would decide what is kept; sparsify first"
            )
        if not isinstance(step, KeepResidual):
            raise PlanError(
                f"{step.name} comes after {final}: it would change values that were already rounded to what "
                f"the codec carries; put {step.name} before {final}"
            )


def _check_feedback(transforms: tuple[Transform, ...]) -> None:
    names = [transform.name for transform in transforms]
    adds, keeps = "add_residual" in names, "keep_residual" in names
    if keeps and not adds:
        raise PlanError(
            "keep_residual without add_residual: what is kept would never be sent; add both or none"
        )
    if adds and not keeps:
        raise PlanError(
            "add_residual without keep_residual: the same residual would be sent again; add both or none"
        )
    if not adds:
        return
    if long := [step.name for step in transforms if step.lengthens]:
        raise PlanError(
            f"add_residual with {long[0]}: its error is longer than its input, and the residual would grow "
            "without bound; leave error feedback out"
        )
    if names.index("add_residual") > names.index("keep_residual"):
        raise PlanError("keep_residual comes before add_residual: the residual would be taken from nothing")
    if names[-1] != "keep_residual":
        raise PlanError("keep_residual must be last: it has to see exactly what the receiver decodes")
    if "clip" in names[names.index("add_residual") :]:
        raise PlanError(
            "clip comes after add_residual: what it cuts off would return through the residual and grow; "
            "clip before"
        )
    if "sparsify" in names[: names.index("add_residual")]:
        raise PlanError(
            "sparsify comes before add_residual: what it drops would be lost to the residual; add first"
        )


def _check_codec(transforms: tuple[Transform, ...], codec: Codec) -> None:
    made = [step.rounds_for for step in transforms if step.rounds_for is not None]
    if codec.exact or made == [codec]:
        return
    step = codec.own_step or f"quantise({codec!r})"
    values = f"values made for {made[0].name}" if made else "unrounded values"
    raise PlanError(
        f"codec {codec.name} cannot carry {values}: what is decoded would differ from what was sent; "
        f"end with {step}"
    )


def _check_bound(transforms: tuple[Transform, ...]) -> None:
    if not any(isinstance(step, Clip) for step in transforms):
        return
    for step in transforms:
        codec = step.rounds_for
        if step.lengthens or (codec is not None and codec.rounds_at_random):
            raise PlanError(
                f"{step.name} rounds at random after clip: its result may be longer than the clip, which is "
                "what noise is added for later; use ternarise or sign, or add the noise in the node"
            )


def _check_private(transforms: tuple[Transform, ...]) -> None:
    for step in transforms:
        if step.lengthens:
            raise PlanError(
                f"{step.name} makes updates longer: a norm that a private mechanism has bounded no longer "
                "holds after it; use ternarise or sign"
            )
        if not step.post_processing:
            raise PlanError(
                f"{step.name} is not known to be post-processing: in a private plan a step may read only the "
                "update and the plan's state"
            )


def _check_values(update: Update) -> None:
    if update.values.dtype != np.float32:
        raise ExchangeError(f"an update must be float32, this one is {update.values.dtype}")
    if np.isfinite(update.values).all():
        return
    bad = next(name for name, part in update.tensors().items() if not np.isfinite(part).all())
    raise ExchangeError(
        f"the update of round {update.round} is not finite in {bad!r}; "
        "lower the learning rate or clip gradients"
    )
