"""What to change: the settings that limit what was found, and those that let an audit answer what is open.

Effects are those that `docs/audit.md` measured, or that follow from a proof; none is promised for this run:
only an audit of a run with the setting shows what it does there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.config import Config
from fedpeft.config.models import AdapterConfig
from fedpeft_attacks.report.wording import PLACES
from fedpeft_attacks.results.assessments import RiskName
from fedpeft_attacks.results.findings import Change, Risk
from fedpeft_attacks.results.words import LEAKS, NOT_COVERED, NOT_TESTED, UNFINISHED
from fedpeft_attacks.update_membership.claimed_bound import allowed_area

_DEFAULT = AdapterConfig()
_FORM = f'adapter.method = "{_DEFAULT.method}", adapter.aggregation = "{_DEFAULT.aggregation}"'
_NOT_RUN = "these attacks were not run; for a deployed run, simulate its config and audit that"
_ATTACKS: Mapping[RiskName, str] = {
    "membership": "update-membership,released",
    "text": "span,sparse-recovery,sequences",
    "labels": "labels",
    "memory": "released",
    "epsilon": "epsilon",
}


def changes_of(config: Config, risks: Sequence[Risk]) -> tuple[Change, ...]:
    """Settings that the run has not set, the most effective first; those that answer open questions last.

    Args:
        config: of the run.
        risks: as `risks.risks_of` makes them.
    """
    leaking = [risk for risk in risks if risk.verdict == LEAKS]
    return (*_limits(config, leaking), *_answers(config, risks))


def _limits(config: Config, leaking: Sequence[Risk]) -> Iterator[Change]:
    names: list[RiskName] = [risk.name for risk in leaking]
    places = {part.place for risk in leaking for part in risk.parts if part.verdict == LEAKS}
    if "epsilon" in names:
        effect = "the claim is contradicted; find the fault first, and report it (docs/privacy-bugs.md)"
        yield Change(setting="do not release this adapter", effect=effect, risks=("epsilon",))
    data: tuple[RiskName, ...] = tuple(name for name in names if name != "epsilon")
    single: tuple[RiskName, ...] = tuple(name for name in data if name != "memory")
    # a claim about a record or a person does not hide what many of them have in common
    alone: tuple[RiskName, ...] = tuple(name for name in data if name != "labels")
    if alone:
        yield _noise(config, alone)
    if PLACES["envelope"] in places and single and not config.exchange.secure.enabled:
        effect = (
            "hides each organisation's envelope in a sum (on the embedded data: back to guessing); the mean "
            "of all shows what it showed before, less the more organisations there are (area 0.73 with 4, "
            "0.59 with 16)"
        )
        yield Change(setting="exchange.secure.enabled = true", effect=effect, risks=single)
    if "membership" in names and places & {PLACES["envelope"], PLACES["aggregate"]}:
        effect = (
            "the same records in fewer and larger steps show less of each: 3 steps of 24 in place of 6 of 12 "
            "took the area on the embedded data from 0.71 to 0.63, and the accuracy from 0.990 to 0.984"
        )
        setting = "federation.batch_size, larger, and federation.local_steps, fewer"
        yield Change(setting=setting, effect=effect, risks=("membership",))
    if "text" in names:
        yield from _form(config)
    if PLACES["released"] in places:
        effect = (
            "fewer passes over the same records; on the embedded data the adapter wrote out 6 % of the "
            "planted secrets after 5 passes over 320 notes, 53 % after 20 passes over 100"
        )
        yield Change(setting="federation.rounds or federation.local_steps, lower", effect=effect, risks=data)


def _noise(config: Config, risks: tuple[RiskName, ...]) -> Change:
    """Differential privacy, which alone has a bound whatever the attack."""
    delta = config.privacy.delta
    low, middle, high = (f"{allowed_area(epsilon, delta):.2f}" for epsilon in (1.0, 3.0, 8.0))
    effect = (
        "the only setting with a bound on every attack: where 0.50 is guessing and 1.00 certainty, whoever "
        f"asks if a record is in the data reaches at most {low} at epsilon 1, {middle} at 3, {high} at 8; it "
        "costs accuracy"
    )
    setting = 'privacy.unit = "record" ("person" where people have several records), small privacy.epsilon'
    if config.privacy.unit != "none":
        setting = "privacy.epsilon, smaller than it is"
    return Change(setting=setting, effect=effect, risks=risks)


def _form(config: Config) -> Iterator[Change]:
    """The form of adapter and exchange that shows the fewest tokens."""
    adapter = config.adapter
    text: tuple[RiskName, ...] = ("text",)
    if adapter.key != _DEFAULT.key:
        effect = "what reads tokens is agreed beforehand and not sent"
        yield Change(setting=_FORM, effect=effect, risks=text)
    if 0 not in adapter.skip_layers:
        effect = (
            "layer 0 is what token extraction reads; on the embedded base, with frozen A and one record, the "
            "rare tokens that were read fell from 77 % to 15 %"
        )
        yield Change(setting="adapter.skip_layers = [0]", effect=effect, risks=text)
    for setting, sentence in REVEALED.items():
        if getattr(adapter, setting):
            yield Change(setting=f"adapter.{setting}, off", effect=sentence, risks=text)


def _answers(config: Config, risks: Sequence[Risk]) -> Iterator[Change]:
    """What lets a next audit say more."""
    for risk in risks:
        if risk.name == "epsilon" and config.privacy.unit == "none":
            if not any(other.verdict == LEAKS for other in risks):
                effect = "without a claim no proof bounds what an attack can tell"
                yield Change(setting='privacy.unit = "record"', effect=effect, risks=("epsilon",))
        elif risk.verdict == UNFINISHED:
            effect = "an attack was stopped before it could tell: run it again where it has more time"
            setting = f"fedpeft audit RUN --attacks {_ATTACKS[risk.name]}"
            yield Change(setting=setting, effect=effect, risks=(risk.name,))
        elif risk.verdict == NOT_COVERED and config.adapter.key != _DEFAULT.key:
            effect = "the audit knows how to read this form of adapter"
            yield Change(setting=_FORM, effect=effect, risks=(risk.name,))
        elif risk.verdict == NOT_TESTED and _skipped(risk):
            setting = f"fedpeft audit RUN --attacks {_ATTACKS[risk.name]}"
            yield Change(setting=setting, effect=_NOT_RUN, risks=(risk.name,))
    if not config.audit.canaries:
        effect = "made-up secrets among the records measure what the adapter remembers (in a simulation)"
        yield Change(setting="audit.canaries = 24", effect=effect, risks=("memory",))


def _skipped(risk: Risk) -> bool:
    """Whether nothing at all was tried on one of its places."""
    return any(part.verdict == NOT_TESTED and "no attack of this kind" in part.text for part in risk.parts)
