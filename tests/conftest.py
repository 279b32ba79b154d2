"""Fixtures that all tests share: tiny bases of several architectures, built from their configurations."""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers as cores: each computes on its own
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels on the CPU, without a compiler

import numpy as np
import pytest

from fedpeft.config.models import AdapterConfig, BaseConfig

TEXT = """
the patient asked for a letter to the heart team and the nurse wrote it down today
please send the invoice again because the bank has not seen the payment yet
question answer yes no green red blue one two three four five six seven
"""
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
ARCHITECTURES = {
    "llama": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mistral": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2},
    "gemma": {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "phi": {**SIZES, "intermediate_size": 48},
    "bert": {**SIZES, "intermediate_size": 48},
}


def _save_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rng = np.random.default_rng(0)
    tokenizer.train_from_iterator([" ".join(rng.choice(TEXT.split(), 12)) for _ in range(50)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def _save_model(folder: Path, architecture: str, vocabulary: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.for_model(architecture, vocab_size=vocabulary, **ARCHITECTURES[architecture])
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        auto = AutoModelForMaskedLM if architecture == "bert" else AutoModelForCausalLM
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A function from an architecture's name to the folder of a tiny random model with a tokenizer."""
    made: dict[str, Path] = {}

    def make(architecture: str = "llama") -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp("bases") / architecture
            folder.mkdir()
            _save_model(folder, architecture, _save_tokenizer(folder))
            made[architecture] = folder
        return made[architecture]

    return make


@pytest.fixture
def tiny_base(tiny_model_folder):
    """A function from an architecture's name (and base settings) to a loaded base."""
    from fedpeft.adapters import detach
    from fedpeft.bases import load_base

    def make(architecture: str = "llama", num_labels: int | None = None, **settings):
        cfg = BaseConfig(model=str(tiny_model_folder(architecture)), device="cpu", **settings)
        return load_base(cfg, num_labels)

    yield make
    detach()


@pytest.fixture
def tiny_llama(tiny_base):
    """The tiny Llama base, float32 on the CPU."""
    return tiny_base("llama")


@pytest.fixture
def tiny_adapter(tiny_llama):
    """A frozen-A LoRA of rank 4 on the tiny Llama base."""
    from fedpeft.adapters import attach

    return attach(tiny_llama, AdapterConfig(skip_layers=(), rank=4), seed=0)


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """An empty folder; afterwards what an example has attached or registered is gone."""
    from fedpeft.adapters import detach
    from fedpeft.plugins import ADAPTER_METHODS, AGGREGATION_RULES, ATTACKS, CODECS, READERS

    registries = (ADAPTER_METHODS, AGGREGATION_RULES, ATTACKS, CODECS, READERS)
    before = [set(registry) for registry in registries]
    monkeypatch.chdir(tmp_path)
    yield
    detach()
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            registry.forget(name)


@pytest.fixture(scope="session")
def own_epsilon():
    """Epsilon of Poisson-sampled Gaussian releases by an accountant of the tests' own.

    Takes ``[(rate, noise over sensitivity, repeats), …]`` and delta. The losses of both directions of
    add-or-remove-one are put into cells of 2e-4, each at its middle, and composed by FFT: neither an upper
    nor a lower bound, but within 1e-3 of the truth.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    cell, half = 2e-4, 2**18

    def masses(rate, noise, removed):
        """Of the loss log(1 - q + q e^((2x - 1) / 2z^2)), or of less that."""
        edges = (np.arange(-half, half + 1) - 0.5) * cell
        reached = np.exp(edges if removed else -edges) - (1 - rate)
        with np.errstate(divide="ignore", invalid="ignore"):
            places = np.where(
                reached > 0, noise**2 * np.log(np.maximum(reached, 1e-300) / rate) + 0.5, -np.inf
            )
        if removed:
            below = (1 - rate) * norm.cdf(places / noise) + rate * norm.cdf((places - 1) / noise)
        else:
            below = norm.sf(places / noise)
        return np.diff(below)

    def one_direction(releases, delta, removed):
        spectrum = 1.0
        for rate, noise, repeats in releases:
            spectrum = spectrum * np.fft.rfft(np.fft.ifftshift(masses(rate, noise, removed))) ** repeats
        chances = np.fft.fftshift(np.fft.irfft(spectrum, 2 * half))
        losses = np.arange(-half, half) * cell

        def excess(epsilon):
            above = losses > epsilon
            return float(chances[above] @ -np.expm1(epsilon - losses[above])) - delta

        return brentq(excess, 0, 50) if excess(0) > 0 else 0.0

    return lambda releases, delta: max(one_direction(releases, delta, way) for way in (True, False))
