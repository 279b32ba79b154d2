"""From a run directory to ``run.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.config import Config, config_hash
from fedpeft.exchange.envelope import SIGNATURE_BYTES, decode_body
from fedpeft.exchange.layout import Layout
from fedpeft.exchange.measure import entropy_bits
from fedpeft.privacy import ACCOUNTANT, Ledger, PrivacyPlan, plan_from_config
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

if TYPE_CHECKING:
    from fedpeft.adapters import Attached

BROADCAST = "broadcast"
SUFFIX = ".fpd"


def record(store: RunStore, facts: dict[str, Any], arms: dict[str, Any], command_s: float) -> dict[str, Any]:
    """Sum a finished run up.

    Args:
        store: the run.
        facts: scores by arm, verdicts of the audit and the attached adapter.
        arms: results of the comparison arms.
        command_s: seconds that the command has taken.
    """
    config, attached, scores = store.config, facts["attached"], facts["scores"]
    verdicts = facts["audit"]
    summary = RunSummary(
        config_hash=config_hash(config),
        seed=config.run.seed,
        base=_base(attached),
        adapter=AdapterFacts(method=attached.method.name, trainable=attached.layout.size),
        rounds=config.federation.rounds,
        nodes=config.federation.nodes,
        loss={arm: score.loss for arm, score in scores.items()} | {k: v["loss"] for k, v in arms.items()},
        accuracy={arm: score.accuracy for arm, score in scores.items()}
        | {k: v["accuracy"] for k, v in arms.items()},
        bytes=_bytes(store, config, attached),
        privacy=privacy_facts(store),
        time=_time(store, command_s),
        audit=None if verdicts is None else AuditFacts(verdicts=verdicts),
        arms=arms,
        updates=[hashlib.sha256(path.read_bytes()).hexdigest() for path in envelopes(store, "up")],
    )
    return summary.model_dump(mode="json")


def envelopes(store: RunStore, direction: str) -> Iterator[Path]:
    """Envelopes of a run as they were sent, in order of round and node."""
    for folder in sorted((store.path / "updates").iterdir()):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if path.stem.startswith(BROADCAST) == (direction == "down"):
                yield path


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
    replies, asked = (sum(event[key] for event in rounds) for key in ("replies", "asked"))
    dense = 4 * _both_factors(attached, config.adapter.rank)
    dense_up, dense_down = dense * replies, dense * asked
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
    """Values of LoRA with both factors on the same modules: ``rank * (in + out)`` each."""
    from fedpeft.adapters.attach import linear_modules_under
    from fedpeft.adapters.methods import in_out

    modules = linear_modules_under(attached.model)
    return sum(rank * sum(in_out(modules[name])) for name in attached.targets)


def _coded(store: RunStore, config: Config, layout: Layout) -> tuple[float | None, float | None]:
    """Bits and Shannon bits per parameter of the ternary envelopes of nodes that share this layout."""
    bits = bound = 0.0
    count = 0
    for direction, codec in (("up", config.exchange.up.codec), ("down", config.exchange.down.codec)):
        if codec != "ternary" or config.adapter.ranks:
            continue
        for path in envelopes(store, direction):
            data = path.read_bytes()
            bits += 8 * len(data)
            bound += entropy_bits(decode_body(data[:-SIGNATURE_BYTES], layout, codec), layout)
            count += layout.size
    return (bits / count, bound / count) if count else (None, None)


def privacy_facts(store: RunStore) -> PrivacyFacts:
    """The claim of a run, read from the nodes' own ledgers."""
    plan = plan_from_config(store.config)
    nodes = [_node(home, plan) for home in store.homes]
    if plan is None:
        return PrivacyFacts(
            unit="none", adjacency=None, trust=None, epsilon=None, delta=None, accountant=None, nodes=nodes
        )
    return PrivacyFacts(
        unit=plan.unit,
        adjacency=plan.adjacency,
        trust=plan.trust,
        epsilon=max(node.epsilon or 0.0 for node in nodes),
        delta=plan.delta,
        accountant=ACCOUNTANT,
        nodes=nodes,
    )


def _node(home: Path, plan: PrivacyPlan | None) -> NodePrivacy:
    file = home / "ledger.sqlite"
    ledger = Ledger(file) if file.exists() else None
    entries = [entry for entry in ledger.entries() if entry.concerns(home.name)] if ledger else []
    spent = ledger.spent(home.name, plan.delta) if ledger and plan else None
    return NodePrivacy(
        name=home.name,
        sampling_probability=plan.sampling_probability if plan else None,
        noise_multiplier=plan.noise_multiplier if plan else None,
        steps=sum(int(entry.body["steps"]) for entry in entries),
        clip=plan.clip if plan else None,
        epsilon=spent,
    )


def _time(store: RunStore, command_s: float) -> TimeFacts:
    rounds = list(store.events("round"))
    train, overhead = (sum(event[key] for event in rounds) for key in ("train_s", "overhead_s"))
    return TimeFacts(
        train_s=train, overhead_s=overhead, total_s=max(train + overhead, 1e-9), command_s=command_s
    )
