"""What comes out of a simulation: ``run.json`` and the model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.adapters.card import CardFacts
from fedpeft.config import Config, config_hash
from fedpeft.config.models import EMBEDDED
from fedpeft.epsilons import UNBOUNDED, shown, worst, written
from fedpeft.exchange import codec_from_config
from fedpeft.exchange.entropy import entropy_bits
from fedpeft.exchange.envelope import SIGNATURE_BYTES, decode_body
from fedpeft.exchange.layout import Layout
from fedpeft.packing.peft_folder import read_config
from fedpeft.privacy import Ledger, PrivacyPlan
from fedpeft.privacy.plan import ACCOUNTANT
from fedpeft.run_plan import RunPlan, num_classes
from fedpeft.runstore import RunStore
from fedpeft.runstore.summary import (
    AdapterFacts,
    AuditFacts,
    BaseFacts,
    ByteFacts,
    NodePrivacy,
    PrivacyFacts,
    RunSummary,
    TimeFacts,
)
from fedpeft_server.rounds.final_adapter import final_round
from fedpeft_simulations.print_summary import WHOSE

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.evaluation.metrics import Evaluation

WHOLE = "-full"
"""Ends the name of a dense envelope for a node that has missed a round."""


def summarise(store: RunStore, attached: Attached, scores: Mapping[str, Evaluation]) -> RunSummary:
    """Sum up what is known when the federation has been judged; baselines and audit are still missing."""
    config = store.config
    central = config.privacy.unit == "node" and config.privacy.trust == "central"
    return RunSummary(
        config_hash=config_hash(config),
        seed=config.run.seed,
        base=_base(attached),
        adapter=_adapter(attached),
        rounds=final_round(store),
        nodes=config.federation.nodes,
        loss={name: score.loss for name, score in scores.items()},
        accuracy={name: score.accuracy for name, score in scores.items()},
        macro_f1={name: score.macro_f1 for name, score in scores.items()},
        bytes=_coarse(config, attached) if central else _bytes(store, config, attached),
        privacy=privacy_facts(store),
        time=_time(store),
        audit=None,
        arms={},
        updates=[]
        if central
        else [hashlib.sha256(path.read_bytes()).hexdigest() for path in envelopes(store, "up")],
    )


def _adapter(attached: Attached) -> AdapterFacts:
    spec = attached.spec
    return AdapterFacts(method=spec.config.key, trainable=attached.layout.size, coverage=spec.coverage.facts)


def _coarse(config: Config, attached: Attached) -> ByteFacts:
    """What may be published where updates without noise reach the coordinator: what everybody knows."""
    most = (
        4 * _both_factors(attached, config.adapter.rank) * config.federation.rounds * config.federation.nodes
    )
    return ByteFacts(
        up=most,
        down=most,
        dense_up=most,
        dense_down=most,
        ratio_up=1.0,
        ratio_total=1.0,
        bits_per_parameter=32.0,
        entropy_bits_per_parameter=None,
    )


def complete(
    summary: RunSummary, baselines: dict[str, Any], audit: AuditFacts | None, command_s: float
) -> RunSummary:
    """A summary with the results of the baselines, of the audit and the time of the command."""
    return summary.model_copy(
        update={
            "loss": summary.loss | {name: result["loss"] for name, result in baselines.items()},
            "accuracy": summary.accuracy | {name: result["accuracy"] for name, result in baselines.items()},
            "arms": baselines,
            "macro_f1": summary.macro_f1
            | {name: result.get("macro_f1") for name, result in baselines.items()},
            "audit": audit,
            "time": summary.time.model_copy(update={"command_s": command_s}),
        }
    )


def card_facts(store: RunStore, summary: RunSummary) -> CardFacts:
    """What the model card of the exported adapter states."""
    sent, labels = summary.bytes, store.labels
    words = json.loads(labels.read_text(encoding="utf-8")) if labels.is_file() else []
    measured = {
        "held-out loss": summary.loss["federated"],
        "held-out accuracy": summary.accuracy["federated"],
    }
    return CardFacts(
        name=f"{store.config.run.name} adapter",
        base=_public_name(store, summary),
        base_sha256=summary.base.sha256,
        quantisation=summary.base.quantisation,
        method=summary.adapter.method,
        trainable=summary.adapter.trainable,
        data=_data_statement(store),
        privacy=privacy_statement(summary.privacy),
        audit=_audit_statement(summary),
        nodes=summary.nodes,
        rounds=summary.rounds,
        bytes_up=sent.up,
        bytes_down=sent.down,
        dense_bytes=sent.dense_up + sent.dense_down,
        metrics={name: value for name, value in measured.items() if value is not None},
        classes=num_classes(store.config.base, words) or 0,
    )


def _public_name(store: RunStore, summary: RunSummary) -> str:
    """The id of a base of a hub, as the adapter names it; of a folder its own name, never where it lies."""
    name = str(read_config(store.adapter).get("base_model_name_or_path"))
    return Path(summary.base.name).name if Path(name).is_dir() else name


def _data_statement(store: RunStore) -> str:
    config = store.config
    if config.data.source == EMBEDDED:
        return (
            f"Invented notes of {config.federation.nodes} invented organisations, {config.data.samples} "
            "each, with invented personal data. No real person is described."
        )
    return (
        f"Records of {config.federation.nodes} organisations, which kept them. Nothing else about them is "
        "published here."
    )


def privacy_statement(privacy: PrivacyFacts) -> str:
    """The run's claim in one paragraph."""
    if privacy.unit == "none":
        return "No differential privacy: this adapter may have memorised its training records."
    what, but = _HOLDS[privacy.trust or "local"]
    if privacy.epsilon == UNBOUNDED:
        return f"No differential privacy: epsilon is {UNBOUNDED} for {what}, whatever was asked for."
    less = " A person with several records is protected less." if privacy.unit == "record" else ""
    less += _withstands(privacy)
    return (
        f"For {what}: ({shown(privacy.epsilon, '.3f')}, {privacy.delta:g})-differential privacy per "
        f"{privacy.unit} ({privacy.adjacency}, trust model {privacy.trust}), "
        f"{WHOSE[privacy.trust or 'local']}, by {privacy.accountant}.{but}{less}"
    )


def _withstands(privacy: PrivacyFacts) -> str:
    """Against whom noise that the nodes add together holds."""
    if privacy.plan is None or (grid := privacy.plan["grid"]) is None:
        return ""
    zero = ", for a node whose update is replaced by zero" if privacy.unit == "node" else ""
    return (
        f" It holds against the coordinator and up to {grid['colluders']} nodes that collude with it{zero}, "
        "while every node has pinned the others' keys."
    )


_HOLDS = {
    "local": ("each node's updates", ""),
    "central": ("the released models", " The coordinator saw each update without noise."),
    "distributed": (
        "the sums of all nodes' updates",
        " Not for the update of one node: its own share of noise protects it far less, and it is the secure "
        "sum that hides it.",
    ),
}
"""What a claim holds for, and what it does not, by trust model."""


def _audit_statement(summary: RunSummary) -> str:
    if summary.audit is None:
        return "No audit was run."
    counts = "; ".join(f"{verdict}: {count}" for verdict, count in summary.audit.verdicts.items())
    risks = " ".join(f"{question} {label}." for question, label in summary.audit.risks.items())
    return (
        f"What left the nodes: {summary.audit.head}. {risks} Findings of the built-in audit at all stages, "
        f"by verdict: {counts}. The report is in the run directory."
    )


def envelopes(store: RunStore, direction: str) -> Iterator[Path]:
    """Envelopes of a run as they were sent, in order of round and node."""
    pattern = "updates/r*/*.fpd" if direction == "up" else "broadcasts/*.fpd"
    yield from sorted(store.path.glob(pattern))


def _base(attached: Attached) -> BaseFacts:
    base = attached.base
    return BaseFacts(
        name=base.name,
        sha256=base.sha256,
        quantisation=base.quantisation,
        parameters=base.parameters,
        dtype=base.dtype,
        device=base.device,
    )


def _bytes(store: RunStore, config: Config, attached: Attached) -> ByteFacts:
    rounds = list(store.events("round"))
    up, down = (sum(event[key] for event in rounds) for key in ("bytes_up", "bytes_down"))
    replies = sum(event["replies"] for event in rounds)
    reached = sum(event["replies"] + len(event["refused"]) for event in rounds if event["bytes_down"])
    dense = 4 * _both_factors(attached, config.adapter.rank)
    dense_up, dense_down = dense * replies, dense * reached
    bits, bound = _coded(store, config, attached.layout)
    exchanged = attached.layout.size * max(replies, 1)
    return ByteFacts(
        up=up,
        down=down,
        dense_up=dense_up,
        dense_down=dense_down,
        ratio_up=dense_up / max(up, 1),
        ratio_total=(dense_up + dense_down) / max(up + down, 1),
        bits_per_parameter=8 * up / exchanged if bits is None else bits,
        entropy_bits_per_parameter=bound,
    )


def _both_factors(attached: Attached, rank: int) -> int:
    """Values of LoRA with both factors on the same modules, ``rank * (in + out)`` each; and trained parts."""
    spec = attached.spec
    whole = sum(value.size for value in attached.starts.values())
    experts = sum(rank * count * sum(shape) for _, (count, *shape) in spec.parts.experts)
    return whole + experts + sum(rank * sum(shape) for _, shape in spec.shapes)


def _coded(store: RunStore, config: Config, layout: Layout) -> tuple[float | None, float | None]:
    """Bits and Shannon bits per parameter of the ternary envelopes of nodes that share this layout."""
    bits = bound = 0.0
    count = 0
    for direction, settings in (("up", config.exchange.up), ("down", config.exchange.down)):
        masked = direction == "up" and config.exchange.secure.enabled
        codec = codec_from_config(settings)
        if not codec.near_entropy or masked or config.adapter.ranks:
            continue
        for path in envelopes(store, direction):
            if direction == "down" and path.stem.endswith(WHOLE):
                continue
            data = path.read_bytes()
            bits += 8 * len(data)
            bound += entropy_bits(decode_body(data[:-SIGNATURE_BYTES], layout, codec), layout)
            count += layout.size
    return (bits / count, bound / count) if count else (None, None)


def privacy_facts(store: RunStore) -> PrivacyFacts:
    """The claim of a run, read from the ledgers of those who add the noise."""
    plan = RunPlan.from_config(store.config, store.values).privacy
    nodes = [_node(store, home, plan) for home in store.homes]
    if plan is None or plan.reproducible:
        nothing = dict.fromkeys(("adjacency", "trust", "epsilon", "delta", "accountant", "plan"))
        return PrivacyFacts(unit="none", nodes=nodes, **nothing)
    return PrivacyFacts(
        unit=plan.unit,
        adjacency=plan.adjacency,
        trust=plan.trust,
        epsilon=worst(node.epsilon for node in nodes),
        delta=plan.delta,
        accountant=ACCOUNTANT,
        plan=plan.describe(),
        nodes=nodes,
    )


def _node(store: RunStore, home: Path, plan: PrivacyPlan | None) -> NodePrivacy:
    """What one node has spent; where the coordinator adds the noise, what it has spent on each of them."""
    if plan is None or plan.reproducible:
        return NodePrivacy(
            name=home.name, sampling_probability=None, noise_multiplier=None, steps=0, clip=None, epsilon=None
        )
    central = plan.trust == "central"
    file = store.path / "ledger.sqlite" if central else home / "ledger.sqlite"
    ledger, lineage = Ledger(file), store.config.run.name if central else home.name
    charged = [entry for entry in ledger.entries() if entry.concerns(lineage)]
    return NodePrivacy(
        name=home.name,
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier,
        steps=sum(int(entry.body["steps"]) for entry in charged),
        clip=plan.clip,
        epsilon=written(ledger.spent(lineage, plan.delta)) if charged else 0.0,
    )


def _time(store: RunStore) -> TimeFacts:
    """Seconds of training as each node noted them: under DP they do not leave it."""
    rounds = list(store.events("round"))
    total = sum(event["total_s"] for event in rounds)
    trained = min(sum(_training(store)), total)
    return TimeFacts(train_s=trained, overhead_s=total - trained, total_s=max(total, 1e-9), command_s=0.0)


def _training(store: RunStore) -> Iterator[float]:
    """Per round the sum of all nodes' seconds where they take turns, else the slowest's."""
    seconds: dict[int, list[float]] = {}
    for times in (home / "times.jsonl" for home in store.homes):
        for line in times.read_text().splitlines() if times.exists() else ():  # a node may never be asked
            note = json.loads(line)
            seconds.setdefault(note["round"], []).append(note["train_s"])
    together = sum if store.config.federation.backend == "inprocess" else max
    return (together(values) for values in seconds.values())
