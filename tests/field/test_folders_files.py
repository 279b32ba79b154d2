"""Files that are not what their names say, folders of other programs, and outputs that cannot be written."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct

import pytest
from safetensors.torch import load_file, save_file

from .input_adapters import set_keys

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def commands(fedpeft, inputs, folder, tmp_path):
    """What every command that reads a folder says of it; none leaves anything."""
    options = {
        "merge": ["-o", tmp_path / "out"],
        "eval": ["--data", inputs.data("held.jsonl")],
        "pack": ["-o", tmp_path / "out"],
        "diff": [inputs.adapter("good")],
    }
    for command, rest in options.items():
        yield fedpeft("adapter", command, folder, *rest)
        assert not (tmp_path / "out").exists()


def _pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def _replaced(folder, make):
    (folder / WEIGHTS).unlink()
    make(folder / WEIGHTS)


def _header(folder, change):
    """Change the header of a safetensors file by hand."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    change({name: entry for name, entry in entries.items() if name != "__metadata__"})
    text = json.dumps(entries).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _overlap(entries):
    first, second, *_ = entries.values()
    second["data_offsets"] = first["data_offsets"]


def _axes(entries):
    next(iter(entries.values()))["shape"] += [1] * 8


def _end(folder, text):
    file = folder / CONFIG
    file.write_text(file.read_text().rstrip()[:-1] + text + "}")


def _other(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    (folder / CONFIG).unlink()


DAMAGE = {
    "pointer": (_pointer, "is a pointer of Git LFS"),
    "link": (
        lambda folder: _replaced(folder, lambda path: path.symlink_to("nowhere")),
        "its link leads nowhere",
    ),
    "loop": (lambda folder: _replaced(folder, lambda path: path.symlink_to(path)), "its link leads nowhere"),
    "folder": (lambda folder: _replaced(folder, os.mkdir), "what has this name is no file"),
    "fifo": (lambda folder: _replaced(folder, os.mkfifo), "what has this name is no file"),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "header too small"),
    "cut": (lambda folder: os.truncate(folder / WEIGHTS, 3000), "cannot be read"),
    "length": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 64), "cannot be read"),
    "overlap": (lambda folder: _header(folder, _overlap), "cannot be read"),
    "axes": (lambda folder: _header(folder, _axes), "has more than 8 axes"),
    "NaN": (lambda folder: _end(folder, ',"lora_dropout":NaN'), "it holds NaN, which is no JSON"),
    "half": (lambda folder: _end(folder, ',"note":"\\ud800"'), "is not a JSON object ('utf-8'"),
    "deep": (lambda folder: _end(folder, ',"note":' + "[" * 900 + "]" * 900), "nested more than 64 deep"),
    "comma": (lambda folder: _end(folder, ","), "is not a JSON object (Expecting property name"),
    "MLX": (lambda folder: _other(folder, "adapters.safetensors"), "it holds an adapter of MLX"),
    "diffusers": (lambda folder: _other(folder, "pytorch_lora_weights.safetensors"), "a LoRA of diffusers"),
    "model": (lambda folder: _other(folder, "config.json"), "it holds a whole model and no adapter"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_something_else_is_named(fedpeft, inputs, tmp_path, name):
    """ml-explore/mlx-lm#1119; hiyouga/LlamaFactory#2977; unslothai/unsloth#1061; huggingface/peft#453."""
    damage, cause = DAMAGE[name]
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "adapter")
    damage(folder)
    for done in commands(fedpeft, inputs, folder, tmp_path):
        assert cause in done.error and done.code in (2, 5)


def test_a_file_in_place_of_a_folder_is_named(fedpeft, inputs, tmp_path):
    file = inputs.adapter("good") / WEIGHTS
    done = fedpeft("adapter", "pack", file, "-o", tmp_path / "a.fpa")
    assert done.error.endswith("is a file; give the folder that peft saved")


def test_nothing_in_a_checkpoint_is_unpickled(fedpeft, inputs, tmp_path):
    """huggingface/peft#309: a checkpoint of Trainer has pickles beside the adapter."""
    folder = shutil.copytree(inputs.adapter("good"), tmp_path / "adapter")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "adapter_model.bin", "scheduler.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    assert fedpeft("adapter", "merge", folder, "-o", tmp_path / "merged").code == 0
    assert fedpeft("adapter", "eval", folder, "--data", inputs.data("held.jsonl")).code == 0
    assert fedpeft("adapter", "pack", folder, "-o", tmp_path / "a.fpa").code == 0
    (folder / WEIGHTS).unlink()
    set_keys(folder, peft_type="XLORA", adapters={"0": str(folder)})
    for done in commands(fedpeft, inputs, folder, tmp_path):
        assert "adapter_model.bin is there" in done.error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def sources(fedpeft, inputs, tmp_path):
    """What each command that writes is given."""
    good = inputs.adapter("good")
    assert fedpeft("adapter", "pack", good, "-o", tmp_path / "good.fpa").code == 0
    return {"pack": good, "merge": good, "unpack": tmp_path / "good.fpa"}


@contextlib.contextmanager
def small_files(size):
    """No file may be longer, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])


@pytest.mark.parametrize("command", ["pack", "merge", "unpack"])
def test_of_a_full_disk_nothing_is_left(fedpeft, sources, tmp_path, command):
    before = sorted(tmp_path.iterdir())
    with small_files(1000):
        done = fedpeft("adapter", command, sources[command], "-o", tmp_path / "out")
    assert "cannot be written: " in done.error and done.code == 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["pack", "merge", "unpack"])
def test_a_place_where_nothing_can_be_is_named(fedpeft, sources, tmp_path, command):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for out in (tmp_path / "file" / "below", tmp_path / ("x" * 300), "/proc/none/out"):
        done = fedpeft("adapter", command, sources[command], "-o", out)
        assert "cannot be written: " in done.error and done.code == 2
    for out in (tmp_path / "file", tmp_path / "link", tmp_path):
        assert (
            "exists; choose another --out" in fedpeft("adapter", command, sources[command], "-o", out).error
        )


def test_order_of_tensors_and_padding_of_ranks_are_no_difference(fedpeft, inputs, tmp_path):
    """vllm-project/vllm#2847: the same adapter in a larger rank, padded with zeros."""
    import torch

    good, wide = inputs.adapter("good"), shutil.copytree(inputs.adapter("good"), tmp_path / "wide")
    tensors = load_file(good / WEIGHTS)
    padded = {
        name: torch.cat([value, torch.zeros_like(value)], dim=0 if "lora_A" in name else 1)
        for name, value in reversed(tensors.items())
    }
    save_file(padded, wide / WEIGHTS)
    config = json.loads((good / CONFIG).read_text())
    set_keys(wide, r=2 * config["r"], lora_alpha=2 * config["lora_alpha"])
    change = json.loads(fedpeft("adapter", "diff", good, wide, "--json").out)
    assert change["weight_change"] < 1e-7 and change["same"] is False
