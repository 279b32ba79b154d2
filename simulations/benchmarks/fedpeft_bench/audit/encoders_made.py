"""The classifiers of ``fedpeft bench audit encoders``, made on the spot, and records for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpeft.config.models import BaseConfig, DataConfig
from fedpeft.rng import stream
from fedpeft_attacks.record_frame import RecordFrame
from fedpeft_simulations.embedded.organisations import make_organisation

if TYPE_CHECKING:
    from fedpeft.bases import Base
    from fedpeft.data import Example, Record

_LONGEST = 128
_ORGANISATIONS, _NOTES, _PUBLIC = 4, 64, 900
_STEPS, _BATCH, _RATE = 80, 16, 1e-3
_CLASSES = 4
_FRAME = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CLS, _SEP, _FIRST = 2, 3, 5
_LENGTHS = (24, 65)
_TINY = 1e-9


@dataclass(frozen=True)
class Classifier:
    """A classifier and where its records come from.

    Attributes:
        base: the classifier.
        draw: so many records of a seed.
        prior: how often each token occurs in public text of the same kind, shape ``(tokens,)``, sum 1.
        frame: what is public of every record.
    """

    base: Base
    draw: Callable[[int, int], list[Example]]
    prior: NDArray[np.float64]
    frame: RecordFrame


def two_layers(folder: Path) -> Classifier:
    """A BERT of two layers and width 256 that names the queue of the embedded notes."""
    from transformers import AutoTokenizer

    from fedpeft.data import tokenise
    from fedpeft_simulations.embedded import base_path

    data = DataConfig(max_length=_LONGEST)
    tokenizer = _framed(AutoTokenizer.from_pretrained(base_path()))
    labels = sorted({record.completion for record in _notes(_PUBLIC)})

    def examples(records: Sequence[Record]) -> list[Example]:
        return tokenise(records, tokenizer, data, "sequence-classification", labels)

    def draw(count: int, seed: int) -> list[Example]:
        records = _notes(seed)
        order = stream(seed, 0, "", "audit-notes").permutation(len(records))[:count]
        return examples([records[place] for place in order])

    public = examples(_notes(_PUBLIC))
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 768}
    model = _bert(len(tokenizer), len(labels), tokenizer.pad_token_id, **sizes)
    _train(model, public, tokenizer.pad_token_id)
    counts = (
        np.bincount(np.concatenate([example.ids for example in public]), minlength=len(tokenizer)) + _TINY
    )
    return Classifier(
        _saved(model, tokenizer, folder, len(labels)),
        draw,
        counts / counts.sum(),
        RecordFrame.of(tokenizer, data),
    )


def bert_base(folder: Path) -> Classifier:
    """The shape of BERT-base with random weights; text of tokens whose frequencies are Zipf's and known."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    size = BertConfig().vocab_size
    names = [*_FRAME, *(f"t{number}" for number in range(len(_FRAME), size))]
    core = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    kinds = (f"{name.strip('[]').lower()}_token" for name in _FRAME)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(kinds, _FRAME, strict=True)))
    shares = np.zeros(size)
    shares[_FIRST:] = 1 / np.arange(1, size - _FIRST + 1)
    prior = shares / shares.sum()
    base = _saved(_bert(size, _CLASSES, 0), tokenizer, folder, _CLASSES)
    frame = RecordFrame.of(tokenizer, DataConfig(max_length=_LONGEST))
    return Classifier(base, lambda count, seed: list(_drawn(prior, count, seed)), prior, frame)


CLASSIFIERS: dict[str, Callable[[Path], Classifier]] = {"2 layers": two_layers, "BERT-base": bert_base}
"""How each is made, in an empty folder, by name."""


def _notes(seed: int) -> list[Record]:
    return [r for place in range(_ORGANISATIONS) for r in make_organisation(place, _NOTES, seed).train]


def _drawn(prior: NDArray[np.float64], count: int, seed: int) -> Iterator[Example]:
    from fedpeft.data import Example

    draws = stream(seed, 0, "", "audit-zipf")
    for _ in range(count):
        text = draws.choice(len(prior), size=int(draws.integers(*_LENGTHS)) - 2, p=prior)
        ids = np.array([_CLS, *text, _SEP], np.int64)
        yield Example(ids, np.zeros(len(ids), np.float32), int(draws.integers(_CLASSES)))


def _framed(tokenizer: Any) -> Any:
    """The embedded tokenizer with an end token after every text, as encoders have one."""
    from tokenizers import processors

    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return tokenizer


def _bert(vocabulary: int, classes: int, padding: int, **sizes: Any) -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    labels: Any = {"num_labels": classes, "pad_token_id": padding}
    config = BertConfig(vocab_size=vocabulary, **labels, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


def _train(model: Any, examples: Sequence[Example], padding: int) -> None:
    """All weights, a fixed number of steps."""
    import torch

    from fedpeft.data import collate
    from fedpeft.training import per_example_loss

    draws, optimiser = stream(0, 0, "", "audit-encoder"), torch.optim.AdamW(model.parameters(), lr=_RATE)
    model.eval()  # no dropout
    for _ in range(_STEPS):
        chosen = draws.choice(len(examples), _BATCH, replace=False)
        loss = per_example_loss(model, collate([examples[place] for place in chosen], padding)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _saved(model: Any, tokenizer: Any, folder: Path, classes: int) -> Base:
    from fedpeft.bases import load_base

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"model": str(folder), "device": "cpu", "dtype": "float32", "task": "sequence-classification"}
    return load_base(BaseConfig.model_validate(settings), classes)
