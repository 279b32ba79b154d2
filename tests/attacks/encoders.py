"""Small classifiers with absolute positions, random and as large as they have to be, and batches for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from fedpeft.adapters import attach
from fedpeft.bases import load_base
from fedpeft.config.models import AdapterConfig, BaseConfig
from fedpeft.data import Example, collate
from fedpeft.training import per_example_loss
from fedpeft.training.modes import steady
from fedpeft_attacks.evidence.undefended_reference import warm_start
from fedpeft_attacks.tokens.adversary_knowledge import knowledge_of
from fedpeft_attacks.views import View

VOCABULARY, WIDTH, CLASSES = 512, 96, 3
PADDING, BEGIN, END, FIRST = 0, 1, 2, 5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "num_labels": CLASSES,
    "pad_token_id": PADDING,
}


def _bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))


def _roberta():
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES))


def _distilbert():
    sizes = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 40}
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY, num_labels=CLASSES, pad_token_id=PADDING, **sizes
    )
    return transformers.DistilBertForSequenceClassification(config)


def _electra():
    return transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(embedding_size=64, **SIZES)
    )


def _albert():
    config = transformers.AlbertConfig(embedding_size=64, bos_token_id=BEGIN, eos_token_id=END, **SIZES)
    return transformers.AlbertForSequenceClassification(config)


def _gpt2():
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": VOCABULARY}
    ids = {"pad_token_id": PADDING, "bos_token_id": BEGIN, "eos_token_id": END}
    return transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(num_labels=CLASSES, **sizes, **ids)
    )


MAKERS = {
    "bert": _bert,
    "roberta": _roberta,
    "distilbert": _distilbert,
    "electra": _electra,
    "albert": _albert,
    "gpt2": _gpt2,
}


def save(kind: str, folder: Path) -> Path:
    """A classifier whose position embeddings weigh as much as those of tokens, with its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MAKERS[kind]()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    names = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "<mask>",
        *(f"w{number}" for number in range(FIRST, VOCABULARY)),
    ]
    core = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)
    return folder


def load(folder: Path):
    settings = {"model": str(folder), "device": "cpu", "task": "sequence-classification"}
    return load_base(BaseConfig.model_validate(settings), CLASSES)


def draw(lengths, seed: int) -> list[Example]:
    """Records of these lengths with their frame, some tokens many times."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY - FIRST + 1)
    texts = (rng.choice(VOCABULARY - FIRST, size=n - 2, p=shares / shares.sum()) + FIRST for n in lengths)
    return [
        Example(np.array([BEGIN, *text, END]), np.zeros(n, np.float32), int(rng.integers(CLASSES)))
        for n, text in zip(lengths, texts, strict=True)
    ]


def view_of(base, adapter: AdapterConfig, examples, values=lambda gradient: gradient):
    """The raw gradient of a batch under a warm adapter, and its distinct tokens."""
    attached = attach(base, adapter, seed=0)
    warm_start(attached)
    batch = collate(examples, base.pad_id)
    with steady(attached.model):
        loss = per_example_loss(attached.model, batch).mean()
        parts = torch.autograd.grad(loss, list(attached.parameters.values()))
    gradient = attached.layout.flatten(dict(zip(attached.parameters, parts, strict=True)))
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    known = knowledge_of(attached, np.full(vocabulary, 1 / vocabulary), ("", 1), 0.0)
    truth = {int(token) for example in examples for token in example.ids} - known.special
    view = View(
        "gradient", "coordinator", "lora", attached.layout, gradient, known, len(truth), len(examples)
    )
    return replace(view, values=values(gradient)), frozenset(truth)
