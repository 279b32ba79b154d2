"""The node's last look at an envelope: the quick audit on its very bytes, before they leave.

``audit.outbox = "report"`` writes what the attacks read to ``<home>/outbox/rNN.audit.json``; ``"refuse"``
also keeps an envelope from leaving that leaks, or whose audit did not finish or does not cover the adapter.
Neither tells the coordinator anything else: the findings stay in the node. Under a privacy plan only
``"report"`` is allowed, as a refusal would depend on the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.data import Example
from fedpeft.errors import FederationError
from fedpeft.exchange import FloatVector
from fedpeft.runstore import write_json
from fedpeft_attacks.results.words import LEAKS, NOT_COVERED, UNFINISHED, Verdict, worst
from fedpeft_clients.rounds.node_context import NodeContext

if TYPE_CHECKING:
    from fedpeft_attacks.envelope_check import QuickFinding

_CAUSES = {
    LEAKS: "found a leak in its update",
    UNFINISHED: "of its update did not finish",
    NOT_COVERED: "does not cover the adapter of its update",
}

Behind = tuple[Sequence[Example], Sequence[Example]]
"""The examples behind an update, and all of the node."""


def look(node: NodeContext, round: int, lr: float, values: FloatVector, examples: Behind) -> None:
    """Attack an envelope as the coordinator would, if the node's config asks for it.

    Args:
        node: of the run; its adapter may be in any state, and is left in that state.
        round: 1-based.
        lr: local learning rate of the round.
        values: what a reader decodes from the envelope, float32, shape ``(layout.size,)``.
        examples: those behind the update, and all of the node.

    Raises:
        FederationError: the envelope leaks, the safety stop ended the audit before it could tell, or the
            audit does not cover the adapter, and the node does not send such ones.
    """
    wanted = node.home.audit.outbox
    if wanted == "off":
        return
    findings = [finding.facts() for finding in _examined(node, round, lr, values, examples)]
    write_json(node.home.outbox / _file(round), {"round": round, "findings": findings})
    verdict = verdict_on(findings)
    if wanted == "refuse" and verdict in _CAUSES:
        raise FederationError(
            f"round {round}: the node's own audit {_CAUSES[verdict]} and keeps it; see "
            f"{node.home.outbox.name}/{_file(round)} in the node's home"
        )


def verdict_on(findings: Sequence[Mapping[str, Any]]) -> Verdict:
    """What written findings say of an update: the worst of their verdicts."""
    return worst(finding["verdict"] for finding in findings)


def _file(round: int) -> str:
    return f"r{round:02d}.audit.json"


def _examined(
    node: NodeContext, round: int, lr: float, values: FloatVector, examples: Behind
) -> list[QuickFinding]:
    from fedpeft_attacks.envelope_check import examine
    from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of
    from fedpeft_attacks.views import View, role_of

    attached, audit = node.attached, node.home.audit
    known = knowledge_of(attached, _prior(node), (node.home.name, round), lr)
    behind, all_tokens = (_tokens(records) - known.special for records in examples)
    stage, counts = "envelope", (len(behind), len(examples[0]))
    view = View(stage, role_of(stage), attached.method.name, attached.layout, values, known, *counts)
    return examine(view, behind, all_tokens - behind, audit.outbox_seconds, audit.threshold)


def _tokens(examples: Sequence[Example]) -> frozenset[int]:
    return frozenset(int(token) for example in examples for token in example.ids)


def _prior(node: NodeContext) -> NDArray[np.float64]:
    """The language prior of the base, once per process; the adapter is set aside and put back."""
    from fedpeft_attacks.tokens.adversary_knowledge import prior_of

    attached, base, priors = node.attached, node.base, node.cache.priors
    if base.sha256 not in priors:
        values = attached.get()
        attached.load(attached.initial())
        try:
            priors[base.sha256] = prior_of(base)
        finally:
            attached.load(values)
    return priors[base.sha256]
