"""``fedpeft bench audit cost``: processor seconds and memory of the audit's attacks by the shape of the base.

Llama-style bases with random weights in the shapes of published ones, with as many layers as an attack reads:
attacks on tokens one, that on sequences a few (its work grows with their number). Each shape is measured in a
process of its own: ``python -m fedpeft_bench.audit.cost NAME`` prints JSON. Memory is the peak of each step
above what base and adapter hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import RunError
from fedpeft.rng import stream
from fedpeft_bench.harness.command import machine

if TYPE_CHECKING:
    from fedpeft.bases import Base
    from fedpeft_attacks.evidence.undefended_reference import Reference

RANK, RECORDS, LENGTH, STEPS = 16, 8, 64, 8
"""Of the adapter, of the batch, of a record in tokens, and of the search that is timed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A base: size of its vocabulary, widths, heads of queries and of keys, and layers that are built."""

    vocabulary: int
    width: int
    inner: int
    heads: tuple[int, int]
    layers: int


SHAPES: dict[str, Shape] = {
    "SmolLM2-135M": Shape(49_152, 576, 1_536, (9, 3), 1),
    "Qwen2.5-0.5B": Shape(151_936, 896, 4_864, (14, 2), 1),
    "Llama-3.2-1B": Shape(128_256, 2_048, 8_192, (32, 8), 1),
}
DEEP = 4
"""Layers of the base that the attack on sequences reads."""


def run(seeds: Sequence[int], report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure every shape.

    Args:
        seeds: the first one draws the records.
        report: called with a line before each shape.

    Raises:
        RunError: a measuring process failed.
    """
    rows: list[Row] = []
    for name in SHAPES:
        if report:
            report(f"cost: {name}")
        command = [sys.executable, "-m", "fedpeft_bench.audit.cost", name, str(seeds[0])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"measuring {name} failed: {done.stderr.strip()[-300:]}")
        rows += json.loads(done.stdout.splitlines()[-1])
    return {"machine": machine(), "seed": seeds[0], "rows": rows}


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    from fedpeft.cli.output import table

    columns = (
        "base",
        "vocabulary x width",
        "layers",
        "what",
        "CPU-s",
        "GiB beside the base",
        "recall, steps",
    )
    table(f"cost of attacks, {RECORDS} records ({facts['machine']})", columns, map(_cells, facts["rows"]))


def _cells(row: Row) -> list[str]:
    what = "" if row["recall"] is None else f"{row['recall']:.2f}"
    steps = f"{row['steps']} steps" if row["steps"] else ""
    size = f"{row['vocabulary']:,} x {row['width']:,}"
    figures = f"{row['seconds']:.1f}", f"{row['bytes'] / 2**30:.2f}"
    return [
        row["base"],
        size,
        str(row["layers"]),
        row["what"],
        *figures,
        ", ".join(filter(None, (what, steps))),
    ]


def measure(name: str, seed: int) -> list[Row]:
    """All rows of one shape, in this process."""
    shape = SHAPES[name]
    rows = [{**row, "base": name, "layers": 1} for row in _tokens(shape, seed)]
    rows += [{**row, "base": name, "layers": DEEP} for row in _sequences(replace(shape, layers=DEEP), seed)]
    return [{**row, "vocabulary": shape.vocabulary, "width": shape.width} for row in rows]


def _tokens(shape: Shape, seed: int) -> list[Row]:
    """Attacks on the gradient of a batch, and on its signs, which no pursuit explains."""
    import numpy as np

    from fedpeft_attacks.registry import attack_named
    from fedpeft_attacks.views import Guess

    costs = Costs()
    base = made_base(shape)
    with costs.of("inputs of the first layer"):
        reference = _reference(base, shape)
    records = _records(shape, seed)
    truth = {token for row in records for token in row}
    with costs.of("a gradient of the batch"):
        view = reference.view(records, truth)
    signs = replace(view, values=np.sign(view.values).astype(np.float32))
    cases = {"span": ("span", view), "sparse-recovery": ("sparse-recovery", view)}
    for what, (attack, seen) in (cases | {"sparse-recovery, of signs": ("sparse-recovery", signs)}).items():
        with costs.of(what) as row:
            guess = attack_named(attack)(seen)
            assert isinstance(guess, Guess)
            row |= {"steps": guess.work.steps, "recall": _recall(guess.ranking, truth)}
    return costs.rows


def _sequences(shape: Shape, seed: int) -> list[Row]:
    """The null model of the attack on sequences, and a few steps of its search for one record."""
    from fedpeft_attacks.sequences import Budget, assemble
    from fedpeft_attacks.sequences.matched import null_of
    from fedpeft_attacks.sequences.probing import Probe

    costs, base = Costs(), made_base(shape)
    reference = _reference(base, shape)
    records = _records(shape, seed)[:1]
    view = reference.view(records, set(records[0]))
    costs = Costs()
    start = view.knowledge.start
    assert start is not None
    with costs.of("sequences, null model"):
        null_of(start, Probe.of(start))
    with costs.of("sequences, search"):
        assemble(view, Budget(STEPS))
    costs.rows[-1]["steps"] = STEPS
    return costs.rows


class Costs:
    """Rows of what was done: processor seconds, and the peak of memory above what was there at first."""

    def __init__(self) -> None:
        self.rows, self._before = list[Row](), -1

    @contextmanager
    def of(self, what: str) -> Generator[Row]:
        """Measure the body; it may add to the row."""
        row: Row = {"what": what, "recall": None, "steps": 0}
        _reset_peak()
        self._before = _status("VmRSS") if self._before < 0 else self._before
        started = time.process_time()
        yield row
        row |= {"seconds": time.process_time() - started, "bytes": max(_status("VmHWM") - self._before, 0)}
        self.rows.append(row)


def _status(name: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def made_base(shape: Shape) -> Base:
    """A Llama-style base with random weights, float32, and a tokenizer that knows numbers as words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from fedpeft.bases import Base

    words = Tokenizer(
        models.WordLevel({str(token): token for token in range(shape.vocabulary)}, unk_token="0")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", bos_token="1", eos_token="2")
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads[0],
        num_key_value_heads=shape.heads[1],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).requires_grad_(False).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    facts = ("random", Path(), "0" * 64, "none", "float32", "cpu", count, "causal-lm")
    return Base(model, tokenizer, *facts)


def _reference(base: Base, shape: Shape) -> Reference:
    """A warm, undefended adapter; the prior falls as Zipf's law does."""
    import numpy as np

    from fedpeft_attacks.evidence.undefended_reference import undefended

    prior = 1 / np.arange(1, shape.vocabulary + 1)
    return undefended(base, RANK, prior / prior.sum())


def _records(shape: Shape, seed: int) -> list[list[int]]:
    """Records of random tokens between start and end."""
    draws = stream(seed, 0, "public", "audit-cost")
    return [[1, *map(int, draws.integers(3, shape.vocabulary, LENGTH - 2)), 2] for _ in range(RECORDS)]


def _recall(ranking: Sequence[int], truth: set[int]) -> float:
    secret = truth - {0, 1, 2}
    return len(secret & set(ranking[: len(secret)])) / len(secret)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
