"""The adapter of a run generates the same text everywhere: plain peft, fedpeft's own evaluation, merged."""

import json
import os
import subprocess
import sys

import pytest

from fedpeft.config.models import DataConfig
from fedpeft.evaluation.adapter_folder import Subject, load_base_of
from fedpeft.evaluation.generation import generate

from .input_data import write_lines

MOST = 12
PROMPTS = [f"Note {i}. " + "The patient came in with pain. " * (i % 3) + "She" for i in range(10)]
PLAIN = """
import json, sys, warnings
sys.modules["fedpeft"] = None  # importing it would be an error
warnings.simplefilter("ignore")
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, base, kind, most, *prompts = json.load(sys.stdin)
auto = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
model = auto.from_pretrained(folder, dtype=torch.float32).eval()  # the base's own type is bfloat16
tokenizer = AutoTokenizer.from_pretrained(base)
texts = []
for prompt in prompts:
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    made = model.generate(**inputs, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    texts.append(tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
json.dump(texts, sys.stdout)
"""


def plain(folder, base, kind, cwd):
    """Texts of a fresh process without fedpeft and without a hub, one prompt at a time."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN],
        input=json.dumps([str(folder), str(base), kind, MOST, *PROMPTS]),
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def own(adapter, records):
    """Texts of base and adapter, as ``adapter eval --generate`` makes them."""
    write_lines(records, [{"prompt": prompt, "completion": "x"} for prompt in PROMPTS])
    loaded = load_base_of(Subject.of_folder(adapter, records, None, DataConfig()))
    base = generate(loaded.model, loaded.tokenizer, loaded.examples, MOST).texts
    adapted = loaded.adapted()
    return list(base), list(generate(adapted.model, adapted.tokenizer, adapted.examples, MOST).texts)


@pytest.mark.parametrize("mode", ["frozen_a", "stack"])
def test_ten_prompts_give_the_same_text_everywhere(fedpeft, settings, tmp_path, monkeypatch, mode):
    """huggingface/peft#1836, #2777 and the like: what was served was not what had been evaluated."""
    monkeypatch.chdir(tmp_path)
    changes = {"adapter__aggregation": mode, "federation__local_steps": 8}
    if mode == "stack":
        changes |= {"exchange__up__error_feedback": "false", "exchange__down__codec": "dense-fp32"}
    done = fedpeft("simulate", "--quiet", "--out", "run", *settings(base__model="embedded", **changes))
    assert done.code == 0, done.err
    served = plain("run/adapter", "run/base", "adapter", tmp_path)
    base, adapted = own(tmp_path / "run/adapter", tmp_path / "prompts.jsonl")
    assert len(served) == 10 and served == adapted
    assert adapted != base and all(text.strip() for text in base)
    assert fedpeft("adapter", "merge", "run/adapter", "-o", "merged").code == 0
    assert plain("merged", "merged", "model", tmp_path) == served
