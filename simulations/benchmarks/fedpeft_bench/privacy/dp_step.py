"""One DP-SGD step against the same step without privacy, and against Opacus: seconds and memory.

``batched``, ``loop`` and ``opacus`` are engines of the platform (``run.engine``); the others run alone.
Each engine runs in a child process on one thread: LoRA of rank 8 on all linear layers of a Llama of 27.4
million random weights, 16 examples of 128 tokens. Seconds are processor time, the best of several steps;
memory is the peak above what is resident before the steps (Linux).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft_bench.harness.command import child_json
from fedpeft_bench.harness.timing import ONE_THREAD

if TYPE_CHECKING:
    from fedpeft.adapters import Attached
    from fedpeft.data import Example

ENGINES = (
    "non-private",
    "batched",
    "loop",
    "opacus",
    "opacus hooks",
    "opacus functorch",
    "opacus ghost",
    "torch vmap",
)
QUANTISATIONS = ("none", "nf4")
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
}
VOCABULARY, EXAMPLES, TOKENS, RANK = 8192, 16, 128, 8
STEPS = 5
"""Timed steps of each engine, on a fast machine as on a slow one."""
COLUMNS = ("quantisation", "engine", "s / step", "over non-private", "extra memory", "of non-private")

Step = Callable[["list[Example]"], object]


def rows(
    quantisations: Sequence[str] = QUANTISATIONS,
    engines: Sequence[str] = ENGINES,
    steps: int = STEPS,
    report: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Figures of each engine on each base; the first engine is what the others are compared with.

    Args:
        quantisations: of the base: ``none`` (float32) or ``nf4``.
        engines: of `ENGINES`; ``torch vmap`` cannot differentiate through nf4 and is left out there.
        steps: timed steps of one engine.
        report: receives a line per engine.
    """
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        save_base(Path(folder))
        for quantisation in quantisations:
            able = [engine for engine in engines if quantisation == "none" or engine != "torch vmap"]
            measured: list[dict[str, Any]] = []
            for engine in able:
                measured.append(_child(folder, quantisation, engine, steps))
                if report:
                    report(f"{quantisation} {engine}: {measured[-1]['seconds']:.2f} s")
            results += [row | _ratios(row, measured[0]) for row in measured]
    return results


def cells(row: dict[str, Any]) -> list[str]:
    """A row of `rows` as text."""
    return [
        row["quantisation"],
        row["engine"],
        f"{row['seconds']:.2f}",
        f"{row['time_ratio']:.2f}x",
        f"{row['extra_bytes'] / 2**20:.0f} MiB",
        f"{row['memory_ratio']:.2f}x",
    ]


def _ratios(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {
        "time_ratio": row["seconds"] / reference["seconds"],
        "memory_ratio": row["extra_bytes"] / reference["extra_bytes"],
    }


def _child(folder: str, quantisation: str, engine: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedpeft_bench.privacy.dp_step"]
    command = [*command, folder, quantisation, engine, str(steps)]
    return child_json(command, f"the step of {engine!r}", ONE_THREAD)


def save_base(folder: Path, shape: dict[str, Any] | None = None) -> None:
    """A Llama of random weights with the embedded base's tokenizer, in a folder that `load_base` reads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fedpeft.bases import load_base
    from fedpeft.config.models import BaseConfig

    tokenizer = load_base(BaseConfig(device="cpu")).tokenizer
    config = LlamaConfig(vocab_size=max(VOCABULARY, len(tokenizer)), **(shape or SHAPE))
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(folder: str, quantisation: str, engine: str, steps: int) -> dict[str, Any]:
    """Seconds of one step and extra peak memory in bytes, in this process."""
    attached = _attached(folder, quantisation)
    step, examples = _step_of(engine, attached), _examples(EXAMPLES, TOKENS)
    step(_examples(2, 8))
    before = _resident_after_trim()
    step(examples)
    times: list[float] = []
    for _ in range(steps):
        started = time.process_time()
        step(examples)
        times.append(time.process_time() - started)
    extra = _memory("VmHWM") - before
    facts = {"quantisation": quantisation, "engine": engine, "seconds": min(times), "extra_bytes": extra}
    return facts | {"trainable": attached.layout.size, "steps": len(times)}


def _attached(folder: str, quantisation: str) -> Attached:
    from fedpeft.adapters import attach
    from fedpeft.bases import load_base
    from fedpeft.config.models import AdapterConfig, BaseConfig

    settings = {"model": folder, "quantisation": quantisation, "device": "cpu", "dtype": "float32"}
    base = load_base(BaseConfig.model_validate(settings))
    return attach(base, AdapterConfig(rank=RANK, aggregation="naive", skip_layers=()), seed=0)


def _examples(count: int, tokens: int) -> list[Example]:
    import numpy as np

    from fedpeft.data import Example

    rng = np.random.default_rng(0)
    weights = (np.arange(tokens) > 0).astype(np.float32)
    return [Example(rng.integers(3, VOCABULARY, tokens), weights) for _ in range(count)]


def _step_of(engine: str, attached: Attached) -> Step:
    if engine.startswith("opacus "):
        return _opacus(attached, engine.removeprefix("opacus "))
    return _vmap(attached) if engine == "torch vmap" else _ours(attached, engine)


def _ours(attached: Attached, engine: Any) -> Step:
    import numpy as np

    from fedpeft.privacy.plan import PrivacyPlan
    from fedpeft.training.local import Extras, train_local
    from fedpeft.training.plan import LocalPlan, PerformanceFlags

    plan = LocalPlan(steps=1, batch_size=EXAMPLES, lr=1e-3)
    privacy = PrivacyPlan(1.0, 1.0, 1.0, EXAMPLES, 1, 1, 1e-5)
    arguments: list[Any] = []
    if engine != "non-private":
        # Without the length of the records the gates stop at a shorter one, beyond which the loop serves
        extras = Extras(flags=PerformanceFlags(engine=engine), longest=TOKENS)
        arguments = [privacy, extras]
    return lambda examples: train_local(attached, examples, plan, np.random.default_rng(0), *arguments)


def _opacus(attached: Attached, mode: str) -> Step:
    """The step of Opacus with the same loss, batch and optimiser, ``wrap_model=False``."""
    import torch
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader

    from fedpeft.data.batches import gather
    from fedpeft.training.loss import per_example_loss

    model: Any = attached.model.train()
    optimiser = torch.optim.AdamW(list(attached.parameters.values()), lr=1e-3, betas=(0.9, 0.95))
    data: Any = range(EXAMPLES)
    loader: Any = DataLoader(data, batch_size=EXAMPLES)
    engine: Any = PrivacyEngine()
    made: tuple[Any, ...] = engine.make_private(
        module=model,
        optimizer=optimiser,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
        wrap_model=False,
        poisson_sampling=False,
        criterion=_Losses(),
    )
    private: Any = made[1]
    mean: Any = made[2] if mode == "ghost" else lambda losses: losses.mean()

    def step(examples: list[Example]) -> None:
        mean(per_example_loss(model, gather(model, examples))).backward()
        private.step()
        private.zero_grad()

    return step


class _Losses:
    """A criterion for Opacus that is handed the losses themselves."""

    reduction = "mean"

    def __call__(self, losses: Any) -> Any:
        return losses


def _vmap(attached: Attached) -> Step:
    """Per-example gradients by ``torch.func``, clipped and summed; no noise, plain gradient descent."""
    import torch
    from torch.func import functional_call, grad, vmap

    from fedpeft.data.batches import gather

    model: Any = attached.model.eval()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Any], row: Any) -> Any:
        logits = functional_call(model, values, (), {"input_ids": row[None], "use_cache": False}).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1], row[1:])

    def step(examples: list[Example]) -> None:
        ids = gather(model, examples).ids
        values = {name: parameter.detach() for name, parameter in named.items()}
        gradients: dict[str, Any] = vmap(grad(loss), in_dims=(None, 0))(values, ids)
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in gradients.values()]).norm(dim=0)
        factors = (1 / norms).clamp(max=1.0)
        for name, part in gradients.items():
            named[name].data.sub_(torch.einsum("b,b...->...", factors, part), alpha=1e-3 / len(ids))

    return step


def _resident_after_trim() -> int:
    """Resident bytes with freed memory given back; the kernel's peak is set to them."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines: Iterator[str] = iter(Path("/proc/self/status").read_text().splitlines())
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
