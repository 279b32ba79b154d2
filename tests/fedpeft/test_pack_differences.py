"""The difference of two adapters against naive twins."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedpeft.errors import ConfigError
from fedpeft.packing.diff import difference
from fedpeft.packing.pack import pack


def adapter(folder, seed=0, rank=4, noise=0.0, **config):
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, width) in {"x.q_proj": (24, 16), "x.v_proj": (8, 16)}.items():
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((rank, width)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((out, rank)).astype(np.float32)
    extra = np.random.default_rng(99)
    for name in sorted(tensors):
        if noise:
            tensors[name] = (tensors[name] + noise * extra.standard_normal(tensors[name].shape)).astype("f4")
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder, tensors


def test_an_adapter_does_not_differ_from_itself(tmp_path):
    folder, _ = adapter(tmp_path / "a")
    found = difference(folder, folder)
    assert found.same and found.weight_change == 0
    assert (found.total.relative, found.total.changed) == (0, 0)
    assert found.total.cosine == pytest.approx(1)


def test_values_and_weight_changes_are_those_of_the_naive_twin(tmp_path):
    (a, before), (b, after) = adapter(tmp_path / "a"), adapter(tmp_path / "b", noise=0.2)
    found = difference(a, b)
    flat = [np.concatenate([t[n].ravel() for n in sorted(t)]).astype(float) for t in (before, after)]
    lost = np.linalg.norm(flat[0] - flat[1]) / max(map(np.linalg.norm, flat))
    assert found.total.relative == pytest.approx(lost)
    assert found.total.cosine == pytest.approx(flat[0] @ flat[1] / np.prod([np.linalg.norm(f) for f in flat]))
    assert found.total.changed == 1 and not found.same
    modules = ("x.q_proj", "x.v_proj")
    products = [[t[f"{m}.lora_B.weight"] @ t[f"{m}.lora_A.weight"] for m in modules] for t in (before, after)]
    changes = [np.concatenate([product.ravel() for product in made]) for made in products]
    wanted = np.linalg.norm(changes[0] - changes[1]) / max(map(np.linalg.norm, changes))
    assert found.weight_change == pytest.approx(wanted, rel=1e-5)


def test_rotated_factors_make_the_same_weight_change(tmp_path):
    a, tensors = adapter(tmp_path / "a")
    b, _ = adapter(tmp_path / "b")
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0].astype(np.float32)
    rotated = {n: turn.T @ v if "lora_A" in n else v @ turn for n, v in tensors.items()}
    save_file({n: np.ascontiguousarray(v) for n, v in rotated.items()}, b / "adapter_model.safetensors")
    found = difference(a, b)
    assert found.total.relative > 0.5
    assert found.weight_change < 1e-4


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"lora_alpha": 16}, 2.0),
        ({"use_rslora": True}, 2.0),  # 8 / sqrt 4 against 8 / 4
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 16, "v_proj": 16}}, 2.0),
    ],
)
def test_scalings_count(tmp_path, config, factor):
    a, _ = adapter(tmp_path / "a")
    b, _ = adapter(tmp_path / "b", **config)
    found = difference(a, b)
    assert found.weight_change == pytest.approx((factor - 1) / factor, rel=1e-6)
    assert found.total.changed == 0 and not found.same
    assert set(found.settings) == {key for key in config if (key, config[key]) != ("lora_alpha", 8)}


def test_other_ranks_and_tensors_are_named(tmp_path):
    a, _ = adapter(tmp_path / "a")
    b, _ = adapter(tmp_path / "b", rank=2)
    found = difference(a, b)
    assert len(found.only_a) == len(found.only_b) == 4 and not found.tensors
    assert 0 < found.weight_change <= 2 and not found.same


@pytest.mark.parametrize("config", [{"peft_type": "IA3"}, {"use_dora": True}])
def test_what_is_not_plain_lora_has_no_weight_change(tmp_path, config):
    a, _ = adapter(tmp_path / "a")
    b, _ = adapter(tmp_path / "b", **config)
    assert difference(a, b).weight_change is None


def test_a_packed_adapter_can_be_compared(tmp_path):
    folder, _ = adapter(tmp_path / "a")
    pack(folder, tmp_path / "a.fpa")
    found = difference(folder, tmp_path / "a.fpa")
    assert not found.settings and 0.02 < found.weight_change < 0.06
    assert difference(tmp_path / "a.fpa", tmp_path / "a.fpa").same
    with pytest.raises(ConfigError):
        difference(folder, tmp_path / "absent")
