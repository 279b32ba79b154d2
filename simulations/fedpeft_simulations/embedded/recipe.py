"""The recipe of the embedded base: tokenizer and weights from the public text, in a fixed number of steps.

`build` is what `fedpeft base build` runs. One thread and fixed seeds make it deterministic: the same machine
and the same versions of torch and tokenizers give the same files, byte for byte. Another processor may round
differently; the assets that the package carries are then still the ones that runs are pinned to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedpeft import rng
from fedpeft_simulations.embedded.corpus import Document, public_documents
from fedpeft_simulations.embedded.vocabulary import read_text

if TYPE_CHECKING:
    import torch

STEPS = 800
_BATCH = 64
_CHUNK = 32  # batches whose documents are sorted by length together
_TOKENIZER_DOCUMENTS = 12000
_VOCABULARY = 2048
_PAD, _BOS, _EOS = 0, 1, 2
_SPECIAL = ["<pad>", "<s>", "</s>"]
_PIECES = r" ?\p{N}{1,2}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"  # digits in pairs; words with their leading space
_ANSWER_WEIGHT = 5.0
_LEARNING_RATE = 4e-3
_WARMUP = 30
_REPORT_EVERY = 25

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama-architecture base."""

    width: int = 128
    hidden: int = 384
    layers: int = 3
    heads: int = 4


def build(
    out: Path,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
    shape: Shape | None = None,
    rate: float = _LEARNING_RATE,
) -> str:
    """Train the embedded base and write a folder that transformers loads; weights are bfloat16.

    Args:
        out: folder to write `config.json`, `model.safetensors` and the tokenizer to.
        steps: optimiser steps; the carried base has `STEPS`.
        seed: of text, weights and order.
        progress: called with a line that names the step and its loss in nats per token, now and then.
        shape: sizes of the base; the carried one has those of `Shape()`.
        rate: largest learning rate of AdamW; wider bases want a lower one.

    Returns:
        SHA-256 of `model.safetensors`, in hex.
    """
    with _one_thread():
        tokenizer = train_tokenizer(list(public_documents(_TOKENIZER_DOCUMENTS, seed)))
        model = new_model(seed, shape)
        _train(model, _batches(tokenizer, steps, seed), (steps, rate), progress)
        _write_card(model, out, steps, seed)
        return _save(model, tokenizer, out)


def public_text(steps: int = STEPS, seed: int = 0) -> Iterator[str]:
    """Yield every text that `build` with these arguments reads: the tokenizer's, then the weights'."""
    for document in public_documents(_TOKENIZER_DOCUMENTS, seed):
        yield document.whole
    for document in public_documents(steps * _BATCH, seed + 1):
        yield document.whole


@contextmanager
def _one_thread() -> Generator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_tokenizer(documents: Sequence[Document]) -> Any:
    """Return a byte-level BPE tokenizer (`PreTrainedTokenizerFast`) that puts `<s>` before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document.whole for document in documents), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", _BOS)])  # type: ignore[assignment]
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=512
    )


def new_model(seed: int, shape: Shape | None = None) -> Any:
    """Return a fresh `LlamaForCausalLM` in float32; torch's global generator is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = shape or Shape()
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.stream(seed, 0, "public", "embedded-weights").integers(2**62)))
        return LlamaForCausalLM(config)


def _batches(tokenizer: Any, steps: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and loss weights, both [B, T]; each document starts with `<s>` and ends with `</s>`."""
    documents = public_documents(steps * _BATCH, seed + 1)
    order = rng.stream(seed, 0, "public", "embedded-order")
    rows: list[tuple[list[int], bool]] = []
    for document in documents:
        rows.append(([*tokenizer(document.whole)["input_ids"], _EOS], bool(document.answer)))
        if len(rows) == _BATCH * _CHUNK:
            yield from _chunk(rows, order)
            rows = []
    yield from _chunk(rows, order)


def _chunk(
    rows: list[tuple[list[int], bool]], order: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = sorted(rows, key=lambda row: len(row[0]))
    starts = np.arange(0, len(rows), _BATCH)
    for start in order.permutation(starts):
        yield _pad(rows[start : start + _BATCH])


def _pad(rows: list[tuple[list[int], bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids_BT, weights_BT = np.full(shape, _PAD), np.zeros(shape, np.float32)
    for row, (ids, labelled) in enumerate(rows):
        ids_BT[row, : len(ids)] = ids
        weights_BT[row, 1 : len(ids)] = 1.0
        if labelled:
            weights_BT[row, len(ids) - 2] = _ANSWER_WEIGHT
    return torch.from_numpy(ids_BT), torch.from_numpy(weights_BT)


def _train(
    model: Any,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    plan: tuple[int, float],
    progress: Progress | None,
) -> None:
    """Train for the plan's number of steps at its learning rate."""
    import torch

    steps, rate = plan

    matrices = [value for value in model.parameters() if value.ndim > 1]
    gains = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    model.train()
    for step, (ids_BT, weights_BT) in enumerate(batches, 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        loss = _loss(model, ids_BT, weights_BT)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if progress and (step % _REPORT_EVERY == 0 or step == steps):
            progress(f"step {step} of {steps}, loss {loss.item():.3f}")


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up, plateau, and a linear fall over the second half."""
    return min(1.0, step / _WARMUP, max(0.02, 2.0 * (1 - step / steps)))


def _loss(model: Any, ids_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    import torch

    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    targets, weights = ids_BT[:, 1:].reshape(-1), weights_BT[:, 1:].reshape(-1)
    nll = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="none")
    return (nll * weights).sum() / weights.sum()


def _write_card(model: Any, out: Path, steps: int, seed: int) -> None:
    text = read_text("base_card.md").format(
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        vocabulary=model.config.vocab_size,
        steps=steps,
        batch=_BATCH,
        seed=seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(text, encoding="utf-8")


def _save(model: Any, tokenizer: Any, out: Path) -> str:
    import torch

    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
