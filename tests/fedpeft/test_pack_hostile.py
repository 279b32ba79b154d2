"""Packed adapters as hostile bytes: damage, headers that lie, payloads that do not fit."""

import hashlib
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpeft.errors import EnvelopeError, ExchangeError, FedPeftError
from fedpeft.packing.file_format import MAGIC
from fedpeft.packing.library import Library
from fedpeft.packing.pack import info, pack, unpack
from fedpeft.packing.recipe import Recipe

RECIPES = (Recipe(), Recipe(codec="ternary", rest="int8"), Recipe(keep=("lora_B",)), Recipe(seed=0))


@pytest.fixture
def folder(tmp_path):
    """An adapter with every kind of part."""
    from fedpeft.packing.recipe import seeded

    rng = np.random.default_rng(0)
    tensors = {
        "base_model.model.m.lora_A.weight": seeded("base_model.model.m.lora_A.weight", (4, 48), 0),
        "base_model.model.m.lora_B.weight": rng.standard_normal((48, 4)).astype(np.float32),
        "n.lora_B.weight": rng.standard_normal((16, 2)).astype(np.float32),
        "n.indices": np.arange(6),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file(tensors, tmp_path / "in/adapter_model.safetensors")
    return tmp_path / "in"


def with_digest(body):
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_truncation_and_every_changed_byte_is_refused(folder, tmp_path, recipe):
    pack(folder, tmp_path / "a", recipe)
    data = (tmp_path / "a").read_bytes()
    bad = tmp_path / "bad"
    for end in range(0, len(data), 7):
        bad.write_bytes(data[:end])
        with pytest.raises(ExchangeError):
            info(bad)
    for position in range(0, len(data), 11):
        bad.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ExchangeError):
            info(bad)
    bad.write_bytes(data + b"\0")
    with pytest.raises(ExchangeError):
        unpack(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_mutations_with_a_right_digest_raise_nothing_else(folder, tmp_path, recipe):
    pack(folder, tmp_path / "a", recipe)
    body = (tmp_path / "a").read_bytes()[:-32]
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(body)
        changed[int(rng.integers(len(body)))] = int(rng.integers(256))
        (tmp_path / "bad").write_bytes(with_digest(bytes(changed)))
        try:
            info(tmp_path / "bad")
        except FedPeftError as error:
            assert isinstance(error, ExchangeError)


def part(**changes):
    return {"codec": "levels", "tensors": {"a": [4]}, "bytes": 40, "error": 0.0} | changes


def header(*parts, **changes):
    return {"config": {}, "dtype": "F32", "bytes_source": 1, "parts": list(parts)} | changes


def hostile(content, payload=b"\0" * 40):
    head = zlib.compress(content if isinstance(content, bytes) else json.dumps(content).encode())
    return with_digest(MAGIC + struct.pack("<I", len(head)) + head + payload)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(part(tensors={"a": [1 << 40]})), "claims"),
        (header(part(tensors={"lora_B": [1 << 30, 1 << 30]})), "claims"),
        (header(part(tensors={"lora_B": [50_000, 1000]})), "claims"),
        (header(part(tensors={"a": [10**30, 10**30]})), "claims"),
        (header(part(), part(tensors={"b": [1 << 25]}, bytes=0)), "claims"),
        (header(part(tensors={"a": [0]})), "header with a tensor without values"),
        (header(part(tensors={"a": [-1]})), "header"),
        (header(part(tensors={"a": "x"})), "header"),
        (header(part(tensors={"a": [1] * 9})), "header"),
        (header(part(tensors={"b": [2], "a": [2]})), "sorted"),
        (header(part(tensors={"__metadata__": [4]})), "reserves"),
        (header(part(bytes=20), part(bytes=20)), "twice"),
        (header(part(error=-1.0)), "header"),
        (header(part(error=float("inf"))), "header"),
        (header(part(codec="pickle")), "header"),
        (header(part(bytes=39)), "another length"),
        (header(part(bytes=-40), part(bytes=80, tensors={"b": [4]})), "header"),
        (header(part(more=1)), "header"),
        (header(part(step=-1.0)), "header"),
        (header(part(codec="seed")), "seed"),
        (header(part(seed=1, sha256="0" * 64)), "seed"),
        (header(part(codec="seed", seed=1, sha256="0" * 64)), "matrices"),
        (header(part(codec="exact")), "types"),
        (header(part(codec="exact", types={"b": "I64"})), "types"),
        (header(part(codec="exact", types={"a": "OBJECT"})), "cannot be read"),
        (header(part(codec="exact", types={"a": "I32"})), "to spare"),
        (header(part(codec="exact", tensors={"a": [8]}, types={"a": "I64"})), "cut off"),
        (header(part(), more=1), "header"),
        (header(part(), dtype="F64"), "header"),
        (header(*[part(bytes=0, tensors={f"{i}": [1]}) for i in range(9)]), "header"),
        (header(part(), claim={"records": 0}), "header"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, content, reason):
    (tmp_path / "bad").write_bytes(hostile(content))
    with pytest.raises(ExchangeError, match=reason):
        info(tmp_path / "bad")


def test_a_seed_that_gives_other_values_is_refused(tmp_path):
    content = header(part(codec="seed", seed=1, sha256="0" * 64, tensors={"a": [2, 2]}, bytes=0))
    (tmp_path / "bad").write_bytes(hostile(content, b""))
    with pytest.raises(ExchangeError, match="other values"):
        info(tmp_path / "bad")


def test_headers_that_inflate_or_nest_without_end_are_refused(tmp_path):
    for content in (b" " * (17 << 20), b"{", b'{"config":' + b'{"a":' * 100_000):
        (tmp_path / "bad").write_bytes(hostile(content))
        with pytest.raises(ExchangeError, match=r"too long|header"):
            info(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(with_digest(MAGIC + struct.pack("<I", 1 << 31) + b"\0" * 40))
    with pytest.raises(ExchangeError, match="cut off"):
        info(tmp_path / "bad")


@pytest.mark.parametrize("codec", ["dense-fp32", "dense-bf16", "int8", "ternary", "levels"])
def test_a_payload_of_the_wrong_length_is_an_envelope_error(tmp_path, codec):
    (tmp_path / "bad").write_bytes(hostile(header(part(codec=codec, tensors={"a": [30]}))))
    with pytest.raises(EnvelopeError):
        info(tmp_path / "bad")


def level_payload(stream, peak=1, scale=0x3F80):
    return bytes([peak]) + struct.pack("<H", scale) + struct.pack("<I", len(stream)) + stream


def deflated(data):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


ONE = deflated(bytes([2 + 3 * 0 + 9 * 1 + 27 * 1 + 81 * 1]))  # levels 1, -1, 0, and two zeros to fill up


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes([1]),
        level_payload(ONE, scale=0x7F80),  # infinite
        level_payload(ONE, scale=0xBF80),  # negative
        level_payload(ONE, scale=0x0001),  # subnormal
        level_payload(ONE, scale=0),
        level_payload(ONE, peak=0),
        level_payload(ONE, peak=200),
        level_payload(ONE)[:-1],
        level_payload(ONE) + b"\0",
        level_payload(ONE + b"\0"),
        level_payload(deflated(bytes([243]))),
        level_payload(deflated(bytes([2 + 81 * 2]))),  # filled up with another level than zero
        level_payload(deflated(bytes([121]))),  # all zero, against the peak
        level_payload(deflated(bytes([121, 121]))),
        level_payload(deflated(b"\0" * (64 << 20))),
        level_payload(b"\xff\xff"),
    ],
)
def test_hostile_levels_are_refused_in_little_memory(payload):
    from fedpeft.exchange.layout import Layout
    from fedpeft.packing import uniform_quantiser

    layout = Layout(("a",), ((3,),))
    assert uniform_quantiser.decode(level_payload(ONE), layout).values().tolist() == [1.0, -1.0, 0.0]
    tracemalloc.start()
    with pytest.raises(EnvelopeError):
        uniform_quantiser.decode(payload, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(payload) + 200_000


def test_a_library_lists_hostile_files_and_goes_on(folder, tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    pack(folder, shelf / "good.fpa")
    (shelf / "lies.fpa").write_bytes(hostile(header(part(tensors={"a": [1 << 40]}))))
    (shelf / "bomb.fpa").write_bytes(hostile(b" " * (17 << 20)))
    (shelf / "long.fpa").write_bytes(MAGIC + struct.pack("<I", 1 << 31) + b"\0" * 64)
    (shelf / "empty.fpa").write_bytes(b"")
    library = Library(shelf)
    assert list(library) == ["good"]
    assert [refused.path.stem for refused in library.refused] == ["bomb", "empty", "lies", "long"]
