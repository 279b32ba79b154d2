"""A folder of packed adapters: listed by headers, decoded one at a time, never stopped by a bad file."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedpeft.errors import ConfigError, ExchangeError
from fedpeft.packing import library as shelf
from fedpeft.packing.file_format import Claim
from fedpeft.packing.library import Library
from fedpeft.packing.pack import pack


@pytest.fixture
def folder(tmp_path):
    """Three packed adapters on two bases, and files that are none."""
    (tmp_path / "shelf" / "below").mkdir(parents=True)
    for index, (name, base) in enumerate([("a.fpa", "llama"), ("b.fpa", "gpt"), ("c", "llama")]):
        source = tmp_path / f"in{index}"
        source.mkdir()
        settings = {"peft_type": "LORA", "base_model_name_or_path": base}
        (source / "adapter_config.json").write_text(json.dumps(settings))
        values = np.random.default_rng(index).standard_normal((32, 4)).astype(np.float32)
        save_file({"m.lora_B.weight": values}, source / "adapter_model.safetensors")
        claim = Claim(records=5, records_sha256="0" * 64, loss=2.0, packed_loss=2.1) if index == 0 else None
        pack(source, tmp_path / "shelf" / name, claim=claim)
    (tmp_path / "shelf/notes.txt").write_text("not an adapter")
    (tmp_path / "shelf/.hidden").write_text("x")
    return tmp_path / "shelf"


def test_adapters_are_listed_by_base(folder):
    library = Library(folder)
    assert sorted(library) == ["a", "b", "c"] and len(library) == 3
    assert {base: list(entries) for base, entries in library.by_base().items()} == {
        "gpt": ["b"],
        "llama": ["a", "c"],
    }
    entry = library["a"]
    assert (entry.method, entry.codecs, entry.values) == ("LORA", ("levels",), 128)
    assert entry.bytes == (folder / "a.fpa").stat().st_size
    assert entry.ratio == entry.bytes_source / entry.bytes
    assert entry.loss_change == pytest.approx(0.05) and library["b"].loss_change is None
    assert [(r.path.name, "not a packed adapter" in r.cause) for r in library.refused] == [
        ("notes.txt", True)
    ]


def test_opening_decodes_nothing_and_loading_decodes_one(folder, monkeypatch):
    opened = []
    load = shelf.load
    monkeypatch.setattr(shelf, "load", lambda path: opened.append(path.name) or load(path))
    library = Library(folder)
    assert opened == []
    assert library["b"].tensors()["m.lora_B.weight"].shape == (32, 4)
    assert opened == ["b.fpa"]


def test_damage_in_a_payload_is_found_when_it_is_loaded(folder):
    data = bytearray((folder / "a.fpa").read_bytes())
    data[-40] ^= 1
    (folder / "a.fpa").write_bytes(data)
    library = Library(folder)
    with pytest.raises(ExchangeError, match="SHA-256"):
        library["a"].tensors()
    assert library["b"].tensors()


def test_damage_in_a_header_is_listed(folder):
    data = bytearray((folder / "a.fpa").read_bytes())
    data[40] ^= 1
    (folder / "a.fpa").write_bytes(data)
    library = Library(folder)
    assert sorted(library) == ["b", "c"]
    assert ["header" in refused.cause for refused in library.refused if refused.path.name == "a.fpa"] == [
        True
    ]


def test_names_that_collide_stay_apart(folder):
    (folder / "c.fpa").write_bytes((folder / "b.fpa").read_bytes())
    library = Library(folder)
    assert library["c"].base == "llama" and library["c.fpa"].base == "gpt"


def test_an_entry_unpacks(folder, tmp_path):
    library = Library(folder)
    library["c"].unpack(tmp_path / "out")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(np.array_equal(written[name], value) for name, value in library["c"].tensors().items())


def test_a_library_needs_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        Library(tmp_path / "absent")
