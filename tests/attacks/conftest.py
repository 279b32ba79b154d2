"""A small trained Llama-style base, batches of its language, and run directories with taps."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from fedpeft.config import Config, build_config, dump_config
from fedpeft.config.models import AdapterConfig
from fedpeft.runstore import write_atomic, write_json

VOCABULARY, TEMPLATES, LENGTH = 1024, 24, 20
GOOD, MOST_STEPS = 4.57, 200
_SHARES = 1 / np.arange(1, VOCABULARY - 2)
_SHARES /= _SHARES.sum()


def draw_sentences(count: int, seed: int) -> list[list[int]]:
    """Template sentences with random slots; token 3 is the commonest, 1 and 2 frame each."""
    templates = np.random.default_rng(0).choice(VOCABULARY - 3, (TEMPLATES, LENGTH), p=_SHARES) + 3
    rng = np.random.default_rng(seed)
    rows = templates[rng.integers(TEMPLATES, size=count)]
    slots = rng.random(rows.shape) < 0.4
    rows = np.where(slots, rng.choice(VOCABULARY - 3, rows.shape, p=_SHARES) + 3, rows)
    return [[1, *map(int, row), 2] for row in rows]


def _loss(model, rows):
    import torch

    ids = torch.tensor(rows)
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))


def _train(model):
    """To a stated quality on unseen sentences, so that the processor does not decide how good it is."""
    import torch

    optimiser, held_out = torch.optim.AdamW(model.parameters(), lr=3e-3), draw_sentences(64, 77)
    for step in range(MOST_STEPS):
        optimiser.zero_grad()
        loss = _loss(model, draw_sentences(16, 1000 + step))
        loss.backward()
        optimiser.step()
        if step % 10 == 9 and float(_loss(model, held_out).detach()) <= GOOD:
            return
    raise AssertionError(f"{MOST_STEPS} steps did not bring the held-out loss down to {GOOD} nats")


def _save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<bos>", "<eos>"]
    words = {word: index for index, word in enumerate([*special, *(f"w{i}" for i in range(3, VOCABULARY))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory):
    """Folder of a Llama with 1,024 tokens, width 64 and two layers, trained on `draw_sentences`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("trained")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **sizes, **ids))
        _train(model)
    model.save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


@pytest.fixture
def trained_base(trained_folder):
    """The trained base."""
    from fedpeft.adapters import detach
    from fedpeft.bases import load_base

    yield load_base(_config(trained_folder).base)
    detach()


def _config(folder, **sections) -> Config:
    return build_config({"base": {"model": str(folder), "device": "cpu"}, **sections})


@dataclass(frozen=True)
class RunMaker:
    """Makes run directories whose taps are real gradients of the trained base."""

    folder: object
    path: object

    def __call__(self, adapter: dict, batch: int = 3, warm: bool = True, **sections):
        """A run of two nodes and one round with the stages gradient, ternarise, envelope."""
        from fedpeft.adapters import attach, detach
        from fedpeft.bases import load_base

        adapter = {"skip_layers": [], **adapter}
        config = _config(self.folder, adapter=adapter, federation={"batch_size": batch}, **sections)
        write_atomic(self.path / "config.toml", dump_config(config).encode())
        base = load_base(config.base)
        mean = 0
        for place, node in enumerate(("bank", "hospital")):
            rows = draw_sentences(batch, 5000 + place)
            attached = attach(base, AdapterConfig(**adapter), config.run.seed, node)
            values = _gradient(attached, rows, warm)
            mean = mean + values / 2
            self._write(node, values, rows)
        folder = self.path / "updates" / "r01"
        np.savez(folder / "aggregate.npz", values=mean)
        detach()
        return self.path

    def _write(self, node, values, rows):
        folder, sent = self.path / "nodes" / node / "taps" / "r01", self.path / "updates" / "r01"
        folder.mkdir(parents=True)
        sent.mkdir(parents=True, exist_ok=True)
        (sent / f"{node}.fpd").write_bytes(b"bytes of " + node.encode())
        coarse = np.where(np.abs(values) >= np.quantile(np.abs(values), 0.8), np.sign(values), 0)
        for stage, kept in {"gradient": values, "ternarise": coarse, "envelope": coarse}.items():
            np.savez(folder / f"{stage}.npz", values=kept.astype(np.float32))
        write_json(
            folder / "meta.json", {"stages": ["gradient", "ternarise", "envelope"], "lr": 0.01, "steps": 1}
        )
        write_json(folder / "truth.json", {"token_ids": rows, "all_token_ids": rows})


def _gradient(attached, rows, warm):
    import torch

    from fedpeft.data import Example, collate
    from fedpeft.training import per_example_loss

    if warm:
        rng = np.random.default_rng(3)
        values = {
            name: rng.normal(scale=0.02, size=tensor.shape) if ".lora_B" in name else tensor
            for name, tensor in attached.parameters.items()
        }
        attached.load(attached.layout.flatten(values))
    weights = np.array([0.0] + [1.0] * (LENGTH + 1), np.float32)
    batch = collate([Example(np.array(row), weights) for row in rows], attached.base.pad_id)
    loss = per_example_loss(attached.model, batch).mean()
    tensors = dict(
        zip(attached.parameters, torch.autograd.grad(loss, list(attached.parameters.values())), strict=True)
    )
    return attached.layout.flatten(tensors)


def _records(group, count, seed):
    """Records of sentences of the trained base's language."""
    from fedpeft.data import Record

    rows = (
        [f"w{token}" if token > 2 else "" for token in row[1:-1]]
        for row in draw_sentences(count, seed + sum(map(ord, group)))
    )
    return [Record(" ".join(row[:14]), " " + " ".join(row[14:]), group) for row in rows]


def _labelled(records, shares):
    """The same records with one of a few answers each, as often as ``shares`` say and whatever the text."""
    from dataclasses import replace

    rng = np.random.default_rng(len(records))
    labels = rng.choice(len(shares), len(records), p=shares)
    return [
        replace(record, completion=f" w{3 + label}") for record, label in zip(records, labels, strict=True)
    ]


class MembershipRuns:
    """Makes run directories for membership: an update is one step of SGD on a batch, unless ``replaced``.

    With ``shares`` the records of each node have labels, so often.
    """

    nodes, rounds, own = ("bank", "hospital"), (2, 4), 48

    def __init__(self, folder, path, batch=4, shares=None):
        self.folder, self.path, self.batch, self.shares = folder, path, batch, shares

    def records(self, name):
        """What a node trains on."""
        return self._drawn(name, self.own, 10)

    def _drawn(self, name, count, seed):
        records = _records(name, count, seed)
        if self.shares is None:
            return records
        even = [1 / len(self.shares["bank"])] * len(self.shares["bank"])
        return _labelled(records, self.shares[name] if seed == 10 else even)

    def __call__(self, replaced=lambda values, rng: values, adapter=None, **sections):
        """The folder of a run; ``replaced`` gets the gradients of all nodes by name, and a generator."""
        from fedpeft.bases import load_base
        from fedpeft.data import tokenise, write_records

        facts = {"rank": 16, "skip_layers": [], **(adapter or {})}
        federation = {"batch_size": self.batch, "rounds": 4, "optimiser": "sgd"}
        data = {"max_length": 64, "prompt_weight": 1.0 if self.shares is None else 0.0}
        config = _config(self.folder, adapter=facts, federation=federation, data=data, **sections)
        write_atomic(self.path / "config.toml", dump_config(config).encode())
        write_json(self.path / "data" / "labels.json", [])
        base, rng, examples = load_base(config.base), np.random.default_rng(1), {}
        for name in self.nodes:
            write_records(self.path / "nodes" / name / "train.jsonl", self.records(name))
            examples[name] = tokenise(self.records(name), base.tokenizer, config.data, base.task)
        unseen = [self._drawn(name, 24, 900) for name in (*self.nodes, "school")]
        write_records(self.path / "data" / "test.jsonl", [record for part in unseen for record in part])
        for number in self.rounds:
            drawn = {
                name: sorted(map(int, rng.choice(self.own, self.batch, replace=False))) for name in self.nodes
            }
            batches = {name: [examples[name][place] for place in drawn[name]] for name in self.nodes}
            start, values = self._gradients(base, config, batches, rng)
            self._write(number, start, replaced(values, rng))
            for name, batch in batches.items():
                rows = [example.ids.tolist() for example in batch]
                truth = {"token_ids": rows, "all_token_ids": rows, "draws": [drawn[name]]}
                write_json(self._taps(name, number) / "truth.json", truth)
        return self.path

    def _gradients(self, base, config, batches, rng):
        """A warm start, and the gradient of each batch there."""
        from fedpeft.adapters import attach, detach
        from fedpeft.training.modes import steady
        from fedpeft_attacks.update_membership.round_scores import gradient_of

        attached = attach(base, config.adapter, config.run.seed, self.nodes[0])
        start = attached.get() + rng.normal(scale=0.02, size=attached.layout.size).astype(np.float32)
        attached.load(start)
        with steady(attached.model):
            values = {name: gradient_of(attached, batch) for name, batch in batches.items()}
        detach()
        return start, values

    def _write(self, number, start, gradients):
        sent = self.path / "updates" / f"r{number:02d}"
        sent.mkdir(parents=True)
        np.savez(sent / "aggregate.npz", values=-np.mean(list(gradients.values()), axis=0))
        for name, gradient in gradients.items():
            folder = self._taps(name, number)
            folder.mkdir(parents=True)
            (sent / f"{name}.fpd").write_bytes(b"bytes")
            for stage, values in {"start": start, "gradient": gradient, "envelope": -gradient}.items():
                np.savez(folder / f"{stage}.npz", values=values.astype(np.float32))
            write_json(folder / "meta.json", {"stages": ["gradient", "envelope"], "lr": 0.01, "steps": 1})

    def _taps(self, name, number):
        return self.path / "nodes" / name / "taps" / f"r{number:02d}"


@pytest.fixture
def make_run(trained_folder, tmp_path):
    """A function that makes a run directory with taps."""
    return RunMaker(trained_folder, tmp_path / "run")


@pytest.fixture
def make_members(trained_folder, tmp_path):
    """A function that makes run directories whose updates were made of known records."""
    return MembershipRuns(trained_folder, tmp_path / "members")


@pytest.fixture
def make_labelled(trained_folder, tmp_path):
    """The same for records with four labels, of which each node has two often and two seldom."""
    shares = {"bank": [0.45, 0.45, 0.05, 0.05], "hospital": [0.05, 0.05, 0.45, 0.45]}
    return MembershipRuns(trained_folder, tmp_path / "labelled", 8, shares)


@pytest.fixture(scope="session")
def sentences():
    """A function (count, seed) to token ids of sentences of the trained base's language."""
    return draw_sentences


@pytest.fixture
def command():
    """A function from arguments of ``fedpeft audit`` to what the command line did."""
    import typer
    from typer.testing import CliRunner

    from fedpeft_attacks.cli import register

    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return lambda *arguments: CliRunner().invoke(app, ["audit", *map(str, arguments)])
