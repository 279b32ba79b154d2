"""What training takes for granted of a base, looked at when it is loaded: two passes over made-up tokens.

Training pads on the right without a mask, takes each record's loss for its own, and lets a causal model read
the answer beside the question. A base for which that is wrong gives figures that look right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpeft.config.models import Task
from fedpeft.data.tokens import surroundings
from fedpeft.errors import BaseModelError, ConfigError, first_line
from fedpeft.rng import stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX, LATER, PADDING = 4, 4, 2
"""Tokens of the probe: those whose logits are compared, those after them, and padding in their place."""
TOLERANCE, ROUGH_TOLERANCE = 1e-4, 3e-2
"""Of a logit, relative to the largest: in float32, and in 16 bits. Rounding changes a few parts in 10
million; an encoder of random weights, which hardly attends to anything, changes by one part in 700."""


@dataclass(frozen=True)
class Probed:
    """A base as it was just loaded.

    Attributes:
        name: as configured.
        model: frozen, on its device.
        tokenizer: its tokenizer, with a padding token.
        task: what its head is for.
        dtype: compute type.
    """

    name: str
    model: Any
    tokenizer: Any
    task: Task
    dtype: torch.dtype


def check_ids(base: Probed) -> None:
    """Refuse a tokenizer that knows more tokens than the base has embeddings.

    A padding token beyond them is replaced, as padding bears no weight. Special tokens that have no part in
    records may be there: text never becomes one (`fedpeft.data.control_tokens`).

    Raises:
        BaseModelError: another token is beyond the embeddings, or there is none for text.
    """
    rows, tokenizer = _rows(base.model), base.tokenizer
    if tokenizer.pad_token_id >= rows:
        names = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
        usable = (name for name in names if name and tokenizer.convert_tokens_to_ids(name) < rows)
        tokenizer.pad_token = next(usable, tokenizer.pad_token)
    used, template = set(tokenizer.all_special_tokens), str(tokenizer.chat_template or "")
    idle = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content not in used and token.content not in template
    }
    every = set(tokenizer.get_vocab().values())
    if not every - set(tokenizer.all_special_ids):
        raise BaseModelError(f"base.model {base.name!r}: its tokenizer has no token of text; get it again")
    last = max(every - idle)
    if last >= rows:
        raise BaseModelError(
            f"base.model {base.name!r}: its tokenizer has {last + 1} ids, its embeddings {rows}; take the "
            "tokenizer that belongs to it, or resize the embeddings and save the base anew"
        )


def check_passes(base: Probed) -> None:
    """Refuse a base whose logits are not what training takes them for.

    Raises:
        BaseModelError: it makes no pass over text alone; its logits are not finite in the compute type; a
            later token changes them (causal models); padding or neighbours in the batch do.
    """
    import torch

    from fedpeft.training.modes import steady

    ids, is_causal = _made_up(base), base.task == "causal-lm"
    whole = torch.tensor([ids[: PREFIX + LATER], ids[:PREFIX] + ids[PREFIX + LATER :]])
    whole = whole.to(next(base.model.parameters()).device)
    padded = whole[:1, : PREFIX + PADDING].clone()
    padded[:, PREFIX:] = base.tokenizer.pad_token_id
    if not is_causal:
        _end(base, padded[:, :PREFIX], whole)
    try:
        with torch.no_grad(), steady(base.model):
            together = _logits(base.model, whole if is_causal else _beside(padded, whole), is_causal)
            alone = _logits(base.model, padded if is_causal else padded[:, :PREFIX], is_causal)
    except Exception as error:  # whatever a foreign model provokes becomes one line
        cause = first_line(error)
    else:
        _compare(base, together, alone)
        return
    raise BaseModelError(
        f"base.model {base.name!r} makes no pass over {PREFIX + LATER} made-up tokens of text ({cause}); "
        f"take another base for {base.task}"
    )


def check_gradient(attached: Any, tokenizer: Any, name: str, task: Task) -> None:
    """Refuse a base through which no gradient reaches its adapter, as reversible layers compute theirs apart.

    Args:
        attached: the base's model with its adapter.
        tokenizer: of the base.
        name: of the base, as configured.
        task: what its head is for.

    Raises:
        BaseModelError: the logits do not depend on the adapter.
    """
    import torch

    from fedpeft.training.modes import steady

    ids = torch.tensor([tokenizer("0 1 2 3")["input_ids"]] * 2, device=next(attached.parameters()).device)
    try:
        with torch.enable_grad(), steady(attached):
            is_trained = _logits(attached, ids, task == "causal-lm").requires_grad
    except Exception as error:  # whatever a foreign model provokes becomes one line
        cause = first_line(error)
    else:
        if is_trained:
            return
        cause = "no gradient reaches it"
    raise BaseModelError(f"base.model {name!r} cannot train its adapter ({cause}); take another base")


def positions_of(model: Any) -> int | None:
    """Most tokens of one record that a base has positions for; None: it names no limit.

    Encoders like RoBERTa count positions from their padding id on, so that 514 positions hold 512 tokens.
    """
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not limit or limit < 0:
        return None
    tables = (m for name, m in model.named_modules() if name.rpartition(".")[2] == "position_embeddings")
    offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return int(limit) - max(offsets, default=0)


def check_length(model: Any, name: str, longest: int) -> None:
    """Refuse records that are longer than the base has positions.

    Raises:
        ConfigError: with the largest ``data.max_length`` that fits.
    """
    positions = positions_of(model)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"data.max_length = {longest} is above the {positions} positions of base.model {name!r}: set "
            f"data.max_length to at most {positions}"
        )


def check_lengths(model: Any, name: str, lengths: Iterable[int]) -> None:
    """Refuse to evaluate records that are longer than the base has positions.

    Raises:
        ConfigError: with the longest record and the limit.
    """
    positions, longest = positions_of(model), max(lengths, default=0)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"a record of {longest} tokens is above the {positions} positions of the base {name!r}: shorten "
            "the records"
        )


def _rows(model: Any) -> int:
    """Number of embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])


def _made_up(base: Probed) -> list[int]:
    """A prefix and two ways on, of ordinary tokens, the same in every process; an image's place is none."""
    config = base.model.config
    marked = {
        value
        for settings in (config, config.get_text_config())
        for key, value in vars(settings).items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    known = set(base.tokenizer.get_vocab().values()) - set(base.tokenizer.all_special_ids) - marked
    ordinary = sorted(number for number in known if number < _rows(base.model)) or [0]
    return [int(i) for i in stream(0, 0, "", "probe of a base").choice(ordinary, PREFIX + 2 * LATER)]


def _end(base: Probed, *batches: Tensor) -> None:
    """End the rows of a classifier's batches as its tokenizer ends a text: some heads look for that token."""
    import torch

    _, suffix = surroundings(base.tokenizer)
    for batch in batches if suffix else ():
        batch[:, -len(suffix) :] = torch.tensor(suffix, device=batch.device)


def _beside(padded: Tensor, whole: Tensor) -> Tensor:
    """The padded prefix and a longer neighbour."""
    import torch

    longer = torch.full_like(whole[:1], int(padded[0, -1]))
    longer[:, :PREFIX] = padded[:, :PREFIX]
    return torch.cat([longer, whole[:1]])


def _logits(model: Any, ids: Tensor, is_causal: bool) -> Tensor:
    """Logits of the first row and of the others, at the prefix; of a classifier, its classes."""
    if is_causal:
        return model(input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :][:, :PREFIX].float()
    mask = ids.new_ones(ids.shape)
    mask[:1, PREFIX:] = 0
    return model(input_ids=ids, attention_mask=mask).logits.float()


def _compare(base: Probed, together: Tensor, alone: Tensor) -> None:
    import torch

    start = f"base.model {base.name!r}"
    kind = str(base.dtype).removeprefix("torch.")
    if not bool(torch.isfinite(together).all() and torch.isfinite(alone).all()):
        cure = "its weights are damaged: get it again"
        if base.dtype != torch.float32:
            cure = "set base.dtype = 'float32', or 'bfloat16' on a GPU that has it"
        raise BaseModelError(f"{start}: its logits are not finite in {kind}; {cure}")
    if not bool(together.any()):
        raise BaseModelError(f"{start}: its logits are all zero, as of empty weights: get it again")
    bound = (TOLERANCE if base.dtype == torch.float32 else ROUGH_TOLERANCE) * float(together.abs().max())
    if base.task == "causal-lm" and float((together[0] - together[1]).abs().max()) > bound:
        raise BaseModelError(
            f"{start} is no causal language model: a later token changes the logits of earlier ones, so that "
            "it would read the answers; take a decoder, or set base.task = 'sequence-classification'"
        )
    if float((together[0] - alone[0]).abs().max()) > bound:
        raise BaseModelError(
            f"{start}: padding on the right, or other records in the batch, change the logits of a record; "
            "take another base"
        )
