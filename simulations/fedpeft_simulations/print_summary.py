"""The table at the end of a run, printed from ``run.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from fedpeft.cli.output import quantity, table
from fedpeft.config import Config
from fedpeft.epsilons import shown
from fedpeft.runstore import RunStore
from fedpeft_attacks.results.words import verdict_words

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` may be, the default first."""
ROWS = ("base", "local_only", "federated", "centralised", "private")


WHOSE = {
    "local": "worst node",
    "central": "for each node, of what is released",
    "distributed": "of the sum of all nodes",
}
"""Whom the printed epsilon is for, and of what, by trust model."""


def print_summary(store: RunStore) -> None:
    """Print what the federation gained, what was sent, what privacy was spent, and what leaked."""
    facts = store.summary
    table("what the federation gained (global held-out records)", *_quality(facts))
    table("what was sent (all envelopes, all nodes)", ("", "bytes", "against dense fp32"), _bytes(facts))
    for text in (*_privacy(facts, store.config), *_audit(facts), *_serving(store), *_time(facts)):
        typer.echo(text)
    report = f"   report: {store.path / 'audit' / 'report.html'}" if facts["audit"] else ""
    typer.echo(f"adapter: {store.adapter}{report}")


def _quality(facts: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = []
    for name in ROWS:
        if name in facts["loss"]:
            label = f"{name} (epsilon {shown(facts['arms'][name]['epsilon'])})" if name == "private" else name
            figures = (facts.get(figure, {}).get(name) for figure in ("accuracy", "macro_f1"))
            shares = ("n/a" if share is None else f"{share:.3f}" for share in figures)
            rows.append((label, *shares, f"{facts['loss'][name]:.4f}"))
    return ("model", "accuracy", "macro-F1", "loss"), rows


def _bytes(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    sent = facts["bytes"]
    rows = {
        "up": (sent["up"], sent["dense_up"]),
        "down": (sent["down"], sent["dense_down"]),
        "together": (sent["up"] + sent["down"], sent["dense_up"] + sent["dense_down"]),
    }
    return [
        (name, quantity(bytes_), f"{dense / bytes_:.1f}x fewer" if bytes_ else "nothing sent")
        for name, (bytes_, dense) in rows.items()
    ]


def _privacy(facts: dict[str, Any], config: Config) -> list[str]:
    sent, privacy = facts["bytes"], facts["privacy"]
    lines: list[str] = []
    if (bound := sent["entropy_bits_per_parameter"]) is not None:
        excess = f", {sent['bits_per_parameter'] / bound - 1:+.2%} over Shannon" if bound else ""
        lines.append(f"envelopes: {sent['bits_per_parameter']:.4f} bits per parameter{excess}")
    if config.exchange.secure.enabled:
        lines.append("updates: masked; the coordinator saw their sums alone (exchange.secure)")
    if privacy["unit"] == "none":
        seeded = config.privacy.unit != "none"
        cause = (
            "privacy.randomness = 'seeded': the noise can be repeated" if seeded else "privacy.unit = 'none'"
        )
        lines.append(f"privacy: none claimed in this run ({cause})")
    else:
        lines.append(
            f"privacy: epsilon {shown(privacy['epsilon'], '.3f')} at delta {privacy['delta']:g} per "
            f"{privacy['unit']} ({privacy['adjacency']}, {privacy['trust']}), {WHOSE[privacy['trust']]}, "
            f"by {privacy['accountant']}"
        )
    return lines


def _serving(store: RunStore) -> list[str]:
    """What a server must be told of the adapter: a stacked run's has the sum of its nodes' ranks."""
    config = json.loads((store.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    whole = {"modules_to_save": "the head is", "trainable_token_indices": "rows of the embeddings are"}
    return serving_notes(
        config.get("r", 0),
        [f"{what} in the adapter ({key})" for key, what in whole.items() if config.get(key)],
    )


def serving_notes(rank: int, whole: Sequence[str] = ()) -> list[str]:
    """Notes for vLLM, the server of LoRA adapters that most people use; none where its defaults do.

    Args:
        rank: of the adapter's modules.
        whole: what the adapter holds beside factors.
    """
    notes: list[str] = []
    if rank > VLLM_RANKS[0]:
        flag = next((served for served in VLLM_RANKS if served >= rank), None)
        cure = f"start it with --max-lora-rank {flag}"
        if flag is None:
            cure = "adapter.aggregation = 'reproject' keeps adapter.rank"
        notes.append(f"serving: rank {rank}; vLLM takes {VLLM_RANKS[0]}, at most {VLLM_RANKS[-1]}: {cure}")
    return [*notes, *(f"serving: {part}, which vLLM does not load: merge it" for part in whole)]


def _audit(facts: dict[str, Any]) -> list[str]:
    audit = facts.get("audit")
    if audit is None:
        return ["audit: not run (audit.enabled = false)"]
    counts = ", ".join(f"{count} × {verdict}" for verdict, count in audit["verdicts"].items())
    head = audit.get("head") or verdict_words(audit["verdict"])  # runs of earlier versions have no head
    risks = [f"  {question} {label}" for question, label in audit.get("risks", {}).items()]
    return [f"audit of what left the nodes: {head} (findings at all stages: {counts})", *risks]


def _time(facts: dict[str, Any]) -> list[str]:
    time = facts["time"]
    share = time["overhead_s"] / time["total_s"]
    return [
        f"time: federation {time['total_s']:.1f} s, of which local training {time['train_s']:.1f} s "
        f"(all else {share:.1%}); whole command {time['command_s']:.1f} s"
    ]
