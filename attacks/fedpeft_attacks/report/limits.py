"""What a report does not show: caveats of every audit, and attacks that this one did not try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpeft.adapters.trained_parts import REVEALED
from fedpeft.config import Config
from fedpeft_attacks.results.findings import EpsilonCheck, Finding
from fedpeft_attacks.results.measures import SECRETS, SEQUENCES

LIMITS = (
    "It shows what these attacks found, not what no attack can find: a stronger one may find more.",
    "The attacker is granted the number of distinct tokens in each batch, which it would have to estimate.",
    "Rare tokens are judged only where another node's update was at hand to compare with: not in the mean.",
    "Nothing here is a proof of privacy. A proof is what differential privacy gives, within its epsilon.",
)
"""What holds for every report."""

_UNTRIED: Mapping[str, str] = {
    SEQUENCES: "Order: only which tokens occur was measured, from the first layer that carries the adapter. "
    "Whether whole sentences can be rebuilt, also from later layers, was not tried.",
    SECRETS: "Personal data: whether names, numbers and dates can be rebuilt whole was not tried.",
    "memorisation": "Memorisation: whether a secret can be drawn out of the finished adapter was not tried.",
    "membership": "Membership: whether one can tell that a record was part of the training was not tried.",
    "update-membership": "Membership from updates: whether an update shows that a record was used "
    "in that round was not tried.",
    "property": "Labels: whether an update shows which labels the records of a round have was not tried.",
    "epsilon": "Epsilon: no lower bound was measured; a claim rests on its proof and the tests of the code.",
    "malicious-coordinator": "A malicious coordinator that sends a base or adapter of its own choice was "
    "not simulated, except in the undefended reference, whose adapter is warm as it would send it.",
    "outsider": "The finished adapter, as an outsider holds it, was not attacked.",
}
"""What to say where no finding has this measure, kind or role."""

_ALWAYS = (
    "Side channels: times and sizes of messages, the numbers that travel beside envelopes, memory and caches "
    "of the machines were not examined.",
    "Intrusion: whether someone can get into a node or the coordinator was not examined.",
)


Places = tuple[tuple[str, ...], tuple[int, ...]]
"""Nodes and rounds that were audited."""


def not_tested(
    config: Config, places: Places, findings: Sequence[Finding], checks: Sequence[EpsilonCheck]
) -> tuple[str, ...]:
    """What this audit did not try, in plain sentences."""
    tried: set[str] = {"epsilon"} if checks else set()
    for finding in findings:
        names = {measure.name for measure in finding.measures} | (
            {finding.attack} if finding.measures else set()
        )
        tried |= {finding.kind, finding.role, *names}
    missing = [sentence for name, sentence in _UNTRIED.items() if name not in tried]
    missing += [
        f"adapter.{setting}: {sentence}, unless noise covers it; how much was not measured."
        for setting, sentence in REVEALED.items()
        if getattr(config.adapter, setting)
    ]
    return (*missing, _coverage(config, *places), *_ALWAYS)


def _coverage(config: Config, nodes: Sequence[str], rounds: Sequence[int]) -> str:
    return (
        f"Coverage: audited were {len(nodes)} of {config.federation.nodes} nodes ({', '.join(nodes)}) and "
        f"{len(rounds)} of {config.federation.rounds} rounds ({', '.join(map(str, rounds))}). "
        "Text was not looked for in updates of one node over many rounds together."
    )
