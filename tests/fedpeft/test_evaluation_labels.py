"""Whether completions are the labels of a task has one rule, whoever evaluates."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fedpeft.data import Record
from fedpeft.evaluation.adapter_folder import base_of
from fedpeft.evaluation.held_out import MAX_CLASSES, RECORDS_PER_CLASS, classes


def records(distinct, count):
    return [Record(f"note {n}", f"label {n % distinct:03d}") for n in range(count)]


@pytest.mark.parametrize(
    ("distinct", "count", "labelled"),
    [
        (1, 100, False),  # nothing to choose from
        (2, 2, True),  # two are always classes
        (3, 8, False),  # hardly repeated: free text
        (3, 12, True),
        (12, 12, False),  # each record has its own completion
        (MAX_CLASSES, RECORDS_PER_CLASS * MAX_CLASSES, True),
        (MAX_CLASSES + 1, 100 * MAX_CLASSES, False),
    ],
)
def test_completions_that_repeat_are_labels(distinct, count, labelled):
    rows = records(distinct, count)
    expected = sorted({row.completion for row in rows}) if labelled else []
    assert classes(rows, "causal-lm") == expected


@pytest.mark.parametrize("distinct", [2, 12, MAX_CLASSES + 1])
def test_a_sequence_classifier_has_labels_only(distinct):
    assert len(classes(records(distinct, distinct), "sequence-classification")) == distinct
    assert classes(records(1, 9), "sequence-classification") == []


@pytest.mark.parametrize(
    ("task_type", "task"),
    [("SEQ_CLS", "sequence-classification"), ("CAUSAL_LM", "causal-lm"), (None, "causal-lm")],
)
def test_an_adapter_folder_says_which_head_its_base_needs(tmp_path, task_type, task):
    facts = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere", "task_type": task_type}
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    weights = {"base_model.model.lm_head.lora_A.weight": torch.ones(1, 2)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    chosen = base_of(tmp_path, "here")
    assert (chosen.model, chosen.task) == ("here", task)
