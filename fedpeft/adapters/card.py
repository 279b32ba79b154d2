"""The model card of an exported adapter: what it is, what it was trained on, what it may have leaked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedpeft.runstore.files import write_atomic


@dataclass(frozen=True)
class CardFacts:
    """What a model card states; every figure comes from the run.

    Attributes:
        name: title of the adapter.
        base: name of the base as configured.
        base_sha256: its content hash.
        quantisation: none, int8 or nf4.
        method: adapter method, such as lora/frozen_a.
        trainable: number of exchanged values.
        data: one paragraph on the records: whose, how many, what was held out.
        privacy: one paragraph on what is guaranteed, or that nothing is.
        audit: one paragraph on what attacks found, empty if none ran.
        nodes: number of organisations.
        rounds: number of rounds.
        bytes_up: length of all envelopes that nodes sent.
        bytes_down: length of all envelopes that the coordinator sent.
        dense_bytes: what the same exchange takes as dense float32, both directions.
        metrics: figures by name, such as held-out loss and accuracy.
        licence: licence identifier, empty if unknown.
        classes: outputs of a sequence classifier; 0: a language model.
    """

    name: str
    base: str
    base_sha256: str
    quantisation: str
    method: str
    trainable: int
    data: str
    privacy: str
    audit: str = ""
    nodes: int = 0
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    dense_bytes: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    licence: str = ""
    classes: int = 0


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write ``README.md`` with Hugging Face front matter into an adapter folder, atomically."""
    path = folder / "README.md"
    write_atomic(path, (_front_matter(facts) + _body(facts)).encode())
    return path


def _front_matter(facts: CardFacts) -> str:
    lines = ["library_name: peft", "tags:", "- federated-learning", "- fedpeft"]
    if facts.base.count("/") == 1 and not facts.base.startswith((".", "/", "~")):
        lines.insert(0, f"base_model: {facts.base}")
    if facts.licence:
        lines.append(f"license: {facts.licence}")
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _body(facts: CardFacts) -> str:
    sections = [
        ("", f"# {facts.name}\n\nAn adapter trained by {facts.nodes} organisations that share no text."),
        ("Base", _table(_base_rows(facts))),
        ("Data", facts.data),
        ("Privacy", facts.privacy),
        ("What an attacker could read", facts.audit),
        ("Exchange", _table(_exchange_rows(facts))),
        ("Results", _table([(name, f"{value:.4g}") for name, value in facts.metrics.items()])),
        ("Use", _use(facts.classes)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections if text) + "\n"


def _base_rows(facts: CardFacts) -> list[tuple[str, str]]:
    return [
        ("base", f"`{facts.base}`"),
        ("content hash", f"`{facts.base_sha256}`"),
        ("quantisation", facts.quantisation),
        ("method", f"`{facts.method}`"),
        ("exchanged values", f"{facts.trainable:,}"),
        ("rounds", str(facts.rounds)),
    ]


def _exchange_rows(facts: CardFacts) -> list[tuple[str, str]]:
    total = facts.bytes_up + facts.bytes_down
    if not total:
        return []
    rows = [("bytes sent by nodes", f"{facts.bytes_up:,}"), ("bytes sent to nodes", f"{facts.bytes_down:,}")]
    if facts.dense_bytes:
        ratio = facts.dense_bytes / total
        rows += [("the same exchange in dense float32", f"{facts.dense_bytes:,}"), ("ratio", f"{ratio:.1f}")]
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _use(classes: int) -> str:
    """How plain peft loads the folder; the base's own configuration need not know the number of classes."""
    kind, more = ("SequenceClassification", f", num_labels={classes}") if classes else ("CausalLM", "")
    return f"""```python
from peft import PeftModel
from transformers import AutoModelFor{kind}

model = AutoModelFor{kind}.from_pretrained("the base named above"{more})
model = PeftModel.from_pretrained(model, "this folder")
```

The folder `base` beside this one, where there is one, is that base. In the directory in which the run was
made, `AutoPeftModelFor{kind}.from_pretrained("this folder"{more})` finds it by itself."""
