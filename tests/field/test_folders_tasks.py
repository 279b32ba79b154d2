"""``adapter eval --tasks``: tasks of lm-eval from files at hand, run here where the extra is installed."""

import json
import sys

import pytest
import torch

from fedpeft.bases.load import quiet

from .input_bases import tokenizer
from .input_data import write_lines

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
WORDS = """
task: words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "yes"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
ROWS = [{"question": f"is {i * i} even", "answer": i % 2} for i in range(9)]


@pytest.fixture
def files(tmp_path):
    """A folder of task files: two at hand, one whose data is at a hub."""
    folder, data = tmp_path / "tasks", tmp_path / "rows.jsonl"
    folder.mkdir()
    write_lines(data, ROWS)
    choice = CHOICE.format(name="parity", file=data)
    (folder / "parity.yaml").write_text(choice)
    (folder / "words.yaml").write_text(WORDS.format(file=data))
    away = choice.replace("task: parity", "task: away").replace("path: json", "path: org/data")
    (folder / "away.yaml").write_text(away.replace(f"dataset_kwargs:\n  data_files:\n    test: {data}\n", ""))
    return folder


def test_without_the_extra_there_is_one_line(fedpeft, inputs, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    options = ("--tasks", "parity", "--include-path", files)
    done = fedpeft("adapter", "eval", inputs.adapter("good"), *options)
    assert done.error == "--tasks needs lm_eval: pip install 'fedpeft[lm-eval]'"
    assert done.code == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tasks", "parity"), "--tasks NAME[,NAME] needs --include-path FOLDER"),
        (("--include-path", "FILES"), "--tasks NAME[,NAME] needs --include-path FOLDER"),
        (("--tasks", "parity", "--include-path", "FILES", "--generate"), "leave out --data and --generate"),
        (("--tasks", "parity", "--include-path", "FILES", "--data", "x"), "leave out --data and --generate"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fedpeft, inputs, files, options, says):
    chosen = [files if option == "FILES" else option for option in options]
    assert says in fedpeft("adapter", "eval", inputs.adapter("good"), *chosen).error


@pytest.fixture
def on_tasks(fedpeft, inputs, files):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

    def run(tasks, *options, adapter="good", folder=files):
        chosen = ("--tasks", tasks, "--include-path", folder, *options)
        return fedpeft("adapter", "eval", inputs.adapter(adapter), *chosen)

    return run


def share_right(base, adapter=None):
    """The naive twin of a choice between two words: the more probable one, one pass a word."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(base)
        model = (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()
        tokens, right = tokenizer(), 0
        for row in ROWS:
            scores = []
            for word in (" yes", " no"):
                prompt, answer = (tokens(text)["input_ids"] for text in (row["question"], word))
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
                scores.append(sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(answer)))
            right += (scores[1] > scores[0]) == bool(row["answer"])
    return right / len(ROWS)


def test_tasks_at_hand_score_adapter_and_base(on_tasks, inputs, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    done = on_tasks("parity,words", "--json")
    assert done.code == 0, done.err
    result, base = json.loads(done.out), inputs.base("llama")
    assert result["base"]["parity"]["acc"] == pytest.approx(share_right(base))
    assert result["tasks"]["parity"]["acc"] == pytest.approx(share_right(base, inputs.adapter("good")))
    assert 0 <= result["tasks"]["words"]["exact_match"] <= 1
    assert json.loads(on_tasks("parity,words", "--json").out) == result


def test_nothing_but_the_table_is_printed(on_tasks, capfd, monkeypatch, tmp_path):
    """Bars of libraries, and git that lm-eval asks for the version of the working directory."""
    monkeypatch.chdir(tmp_path)
    done = on_tasks("parity")
    assert done.code == 0 and "parity" in done.out
    assert done.err == capfd.readouterr().err == ""


def test_no_copy_of_the_records_is_kept(on_tasks, monkeypatch, tmp_path):
    from datasets import config

    cache = tmp_path / "cache"
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", cache)
    assert on_tasks("parity").code == 0
    assert cache == config.HF_DATASETS_CACHE and not cache.exists()


def test_what_does_not_run_is_one_line(on_tasks, tmp_path):
    assert "has no task 'party'; the nearest task is 'parity'" in on_tasks("party").error
    assert "task 'away' failed in lm-eval" in on_tasks("away").error
    assert "is no folder" in on_tasks("parity", folder=tmp_path / "nowhere").error
    assert "is a sequence classifier" in on_tasks("parity", adapter="seq-cls").error
