"""Adapters from strangers: their settings keep no machine busy, load no code and call no hub."""

import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import warnings

import pytest

from fedpeft.adapters import attach, export
from fedpeft.adapters.untrusted_config import check_foreign
from fedpeft.config.models import AdapterConfig
from fedpeft.errors import BaseModelError, ConfigError
from fedpeft.evaluation.adapter_folder import merge_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import sre_parse

SLOW = "((([a-z_])+)+[.0-9]*)+Z"
HOSTILE = {
    "feedforward_modules": "(.*)*x",
    "layers_pattern": ["h", "(a+)+"],
    "modules_to_save": [SLOW],
    "rank_pattern": {SLOW: 4},
    "alpha_pattern": {"(([a-z]+)+[._0-9]*)+Z": 4},
    "n_frequency_pattern": {".*.*.*.*.*.*.*.*x": 1},
    "block_size_pattern": {"[a-z]{1,100}{1,100}": 1},
    "target_parameters": ["(?=(a+))*b"],
}
PLAIN = (
    "q_proj",
    "all-linear",
    "model.layers.0.self_attn.q_proj",
    r".*\.layers\.\d+\.mlp\.(?:gate_proj|up_proj)",
    "^model.decoder.layers.0.encoder_attn.k_proj$",
    "h",
)


@pytest.fixture
def adapter(tiny_llama, tmp_path):
    """A function from changes of its configuration to the folder of an adapter and its base's folder."""
    attached = attach(tiny_llama, AdapterConfig(skip_layers=(), rank=2), seed=0)
    good = export(attached, tmp_path / "good")

    def make(**changes):
        folder = shutil.copytree(good, tmp_path / "evil")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        return folder, tiny_llama.folder

    return make


@pytest.mark.parametrize("setting", HOSTILE)
def test_an_expression_is_refused_before_anything_is_matched(adapter, tmp_path, monkeypatch, setting):
    folder, base = adapter(**{setting: HOSTILE[setting]})
    monkeypatch.setattr("peft.PeftModel.from_pretrained", lambda *_: pytest.fail("peft sees it"))
    with pytest.raises(
        ConfigError, match=rf"{setting} of adapter_config.json holds the expression"
    ) as caught:
        merge_folder(folder, tmp_path / "out", str(base))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"r": 30_000_000},
        {"rank_pattern": {"q_proj": 30_000_000}},
        {"rank_pattern": {f"q{i}": 1 for i in range(5000)}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_code_and_sizes_are_refused(adapter, tmp_path, changes):
    folder, base = adapter(**changes)
    with pytest.raises(ConfigError, match=r"loads code|largest rank|at most 4096"):
        merge_folder(folder, tmp_path / "out", str(base))


@pytest.mark.parametrize(("setting", "pattern"), [("target_modules", SLOW), ("exclude_modules", "(a|a)*$")])
def test_expressions_of_modules_are_not_matched_since_the_file_says_which(
    adapter, tmp_path, monkeypatch, setting, pattern
):
    folder, base = adapter(**{setting: pattern})
    from peft import PeftModel

    load, seen = PeftModel.from_pretrained, []

    def record(model, name, config):
        seen.append((config.target_modules, config.exclude_modules))
        return load(model, name, config=config)

    monkeypatch.setattr("peft.PeftModel.from_pretrained", record)
    merge_folder(folder, tmp_path / "out", str(base))
    (targets, excluded), *_ = seen
    assert excluded is None and all(name.startswith("model.layers.") for name in targets)


def test_no_library_that_an_adapter_names_is_imported(adapter, tmp_path):
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "antigravity"}
    folder, base = adapter(task_type=None, auto_mapping=mapping)
    merge_folder(folder, tmp_path / "out", str(base))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_1000000000", "olora", "loftq", "corda", "x", []])
def test_a_start_that_computes_or_changes_the_base_is_refused(adapter, tmp_path, start):
    folder, base = adapter(init_lora_weights=start)
    with pytest.raises(ConfigError, match="init_lora_weights"):
        merge_folder(folder, tmp_path / "merged", str(base))


def test_weights_that_are_code_are_not_read(adapter, tmp_path):
    folder, base = adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"adapter_model\.bin is there"):
        merge_folder(folder, tmp_path / "out", str(base))


@pytest.mark.parametrize("pattern", PLAIN)
def test_names_and_what_people_write_are_taken(pattern):
    check_foreign(
        {"target_modules": pattern, "rank_pattern": {pattern: 8}, "layers_pattern": [pattern]}, "it"
    )


def test_whatever_is_taken_matches_in_bounded_time():
    """An accepted expression has no repeat in a repeat, and few that fit anything or digits."""
    rng, taken = random.Random(0), 0
    atoms = [
        "a",
        "b",
        ".",
        "*",
        "+",
        "?",
        "(",
        ")",
        "|",
        "(?:",
        "[ab]",
        r"\d",
        r"\.",
        "{2,}",
        "^",
        "$",
        "(?=",
        "\\1",
    ]
    for _ in range(100_000):
        pattern = "".join(rng.choices(atoms, k=rng.randint(1, 9)))
        try:
            check_foreign({"target_modules": pattern}, "it")
        except ConfigError:
            continue
        taken += 1
        repeats = list(_repeats(sre_parse.parse(rf"(.*\.)?({pattern})$")))
        assert sum(kind == "ANY" for kind in repeats) <= 2, pattern
        assert set(repeats) <= {"ANY", "IN"} and repeats.count("IN") <= 2, pattern
    assert taken > 1000


def _repeats(parsed):
    """What is repeated without a bound in a parsed expression."""
    for operation, argument in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            _, high, body = argument
            unbounded = str(high) == "MAXREPEAT"
            if unbounded:
                yield str(body[0][0]) if len(body) == 1 else "SEVERAL"
            yield from ("NESTED" for _ in _repeats(body) if unbounded)
            if not unbounded:
                yield from _repeats(body)
        elif name == "SUBPATTERN":
            yield from _repeats(argument[-1])
        elif name == "BRANCH":
            for branch in argument[1]:
                yield from _repeats(branch)
        else:
            assert not name.startswith(("ASSERT", "GROUPREF")), name


def test_an_adapter_names_a_base_that_is_not_here(adapter, tmp_path):
    folder, _ = adapter(base_model_name_or_path="attacker/tracking-model")
    with pytest.raises(BaseModelError, match="if you trust it, fetch it and give it with --base"):
        merge_folder(folder, tmp_path / "out", None)


def test_no_hub_hears_of_an_adapter_and_none_sees_a_token(adapter, tmp_path):
    hits = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append((self.path, self.headers.get("authorization")))
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    online = {
        **os.environ,
        **{"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"},
        **{"HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "hf")},
    }

    def merge(*arguments):
        command = [sys.executable, "-m", "fedpeft", "adapter", "merge", *map(str, arguments)]
        return subprocess.run(command, env=online, capture_output=True, text=True)

    folder, base = adapter(base_model_name_or_path="attacker/tracking-model")
    refused = merge(folder, "-o", tmp_path / "a")
    assert refused.returncode == 4 and "not on this machine" in refused.stderr and not hits
    merged = merge(folder, "-o", tmp_path / "b", "--base", base)
    assert merged.returncode == 0 and not hits, merged.stderr
    asked = merge(folder, "-o", tmp_path / "c", "--base", "somebody/gated")
    hub.shutdown()
    hub.server_close()
    assert asked.returncode == 4 and hits and all(token is None for _, token in hits)
