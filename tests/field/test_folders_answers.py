"""Generated answers of ``adapter eval --generate``: EleutherAI/lm-evaluation-harness#1828 and the like."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch

from fedpeft.bases.load import load_apart, quiet
from fedpeft.config.models import BaseConfig, DataConfig
from fedpeft.data import Example, Record, tokenise
from fedpeft.evaluation.generation import generate
from fedpeft.training.modes import steady

from .input_adapters import CAUSAL, lora, save_adapter
from .input_bases import llama, tokenizer
from .input_data import write_lines

MOST = 6


def examples(count=5, completion="yes"):
    """Prompts of several lengths."""
    rows = [Record("question " + "x" * (3 * i), completion) for i in range(count)]
    return lambda tokens: tokenise(rows, tokens, DataConfig())


def one_by_one(model, tokens, prompt):
    """The naive twin: every token from a pass over all before it, without cache, padding or neighbours."""
    ids, answer = torch.from_numpy(prompt)[None], []
    with torch.no_grad(), steady(model):
        while len(answer) < MOST:
            logits = model(input_ids=ids, use_cache=False, attention_mask=torch.ones_like(ids)).logits
            token = int(logits[0, -1].argmax())
            if token == tokens.eos_token_id:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return tokens.decode(answer, skip_special_tokens=True)


def check(model, tokens):
    asked = examples()(tokens)
    answers = generate(model, tokens, asked, MOST)
    expected = [one_by_one(model, tokens, example.ids[: example.prompt_length]) for example in asked]
    assert list(answers.texts) == expected
    assert len(set(expected)) > 1 or "mamba" in model.config.model_type


@pytest.mark.parametrize("name", ["llama", "tied", "qwen3-moe", "gemma3-mm", "mamba", "padid"])
def test_answers_of_a_batch_are_those_of_each_prompt_alone(inputs, name):
    base = load_apart(BaseConfig(model=str(inputs.base(name)), threads=1))
    check(base.model, base.tokenizer)


@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix", "tokens"])
def test_adapters_answer_in_a_batch_as_alone(inputs, kind):
    """huggingface/peft#869 and others: prompts and prefixes under padding on the left."""
    configs = {
        "lora": lora(target_modules="all-linear"),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL),
        "tokens": lora(trainable_token_indices=[40, 41]),
    }
    base = load_apart(BaseConfig(model=str(inputs.base("llama")), threads=1))
    torch.manual_seed(0)
    model = peft.get_peft_model(base.model, configs[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    check(model, base.tokenizer)


def test_absolute_positions_do_not_see_the_padding(tmp_path):
    """GPT-2 counts positions from the first token of a row unless it is told where the prompt begins."""
    import transformers

    torch.manual_seed(0)
    settings = {"vocab_size": 102, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, initializer_range=0.3)).eval()
    model.config.pad_token_id = 0
    check(model, tokenizer())


def test_an_answer_ends_with_the_turn_that_true_answers_end_with(inputs):
    """huggingface/transformers#26160 and others: generation went on to the limit after <|im_end|>."""
    tokens, model = tokenizer(), llama().eval()
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 102)
        model.lm_head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(end), 102).float())
    ids = np.array([*tokens("question?")["input_ids"], *tokens("yes")["input_ids"], end])
    answered = Example(ids, np.ones(len(ids), np.float32), prompt_length=len(ids) - 4)
    answers = generate(model, tokens, [answered], MOST)
    assert (answers.texts, answers.unfinished) == (("",), 0)
    other = Example(ids[:-1], np.ones(len(ids) - 1, np.float32), prompt_length=len(ids) - 4)
    assert generate(model, tokens, [other], MOST).unfinished == 1


def figures(fedpeft, adapter, data, *options):
    done = fedpeft("adapter", "eval", adapter, "--data", data, "--generate", "--json", *options)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture
def asked(fedpeft, inputs):
    return lambda name, *options: figures(
        fedpeft, inputs.adapter(name), inputs.data("held.jsonl"), "--max-new-tokens", MOST, *options
    )


def test_the_base_stands_beside_the_adapter(fedpeft, inputs, asked):
    result = asked("good")
    assert result["base"]["loss"] != result["loss"]
    assert set(result["generated"]) == {"exact_match", "token_f1", "rouge_l", "unfinished"}
    assert result == asked("good")
    options = ["--data", inputs.data("held.jsonl"), "--generate", "--max-new-tokens", MOST]
    shown = fedpeft("adapter", "eval", inputs.adapter("good"), *options)
    assert "8 held-out records, greedy answers of at most 6 tokens" in shown.out
    lines = [line.split() for line in shown.out.splitlines()]
    assert [line[0] for line in lines if line[:1] in (["base"], ["adapter"])] == ["base", "adapter"]
    assert f"{result['loss']:.4f}" in shown.out and f"{result['base']['loss']:.4f}" in shown.out


def test_the_figures_are_those_of_the_answers(fedpeft, inputs, tmp_path):
    """What an adapter says is made the true answer of half of the records."""
    from transformers import AutoModelForCausalLM

    base, adapter = inputs.base("llama"), inputs.adapter("good")
    tokens = tokenizer()
    with quiet():
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    prompts = [f"ask {i}" for i in range(4)]
    said = [one_by_one(model, tokens, np.array(tokens(prompt)["input_ids"])) for prompt in prompts]
    assert all(text.strip() for text in said)
    truths = [said[0], said[1], "something else", "another thing"]
    rows = [{"prompt": p, "completion": t} for p, t in zip(prompts, truths, strict=True)]
    write_lines(tmp_path / "rows.jsonl", rows)
    result = figures(fedpeft, adapter, tmp_path / "rows.jsonl", "--max-new-tokens", MOST)
    assert result["generated"]["exact_match"] == 0.5
    assert result["accuracy"] is None


def test_generation_settings_of_a_base_play_no_part(fedpeft, inputs, tmp_path, asked):
    """Sampling and penalties that instruct models ship would make figures that nobody gets twice."""
    base = shutil.copytree(inputs.base("llama"), tmp_path / "base")
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(settings))
    assert asked("good", "--base", base) == asked("good")


def test_the_work_is_linear_in_the_records(inputs, monkeypatch):
    base = load_apart(BaseConfig(model=str(inputs.base("llama")), threads=1))
    rows = []
    base.model.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    for count in (40, 80):
        asked = examples(1)(base.tokenizer) * count
        rows.clear()
        generate(base.model, base.tokenizer, asked, MOST)
        assert sum(rows) <= count * MOST


@pytest.mark.parametrize("option", ["--data", "--base"])
def test_a_run_is_evaluated_on_what_is_its_own(fedpeft, inputs, tmp_path, option):
    """Records given beside a run were passed over without a word."""
    (tmp_path / "config.toml").touch()
    done = fedpeft("adapter", "eval", tmp_path, option, inputs.data("held.jsonl"))
    assert "its own base and global test" in done.error and done.code == 2


def test_what_cannot_be_generated_is_refused(fedpeft, inputs, tmp_path):
    held = inputs.data("held.jsonl")
    done = fedpeft("adapter", "eval", inputs.adapter("seq-cls"), "--data", held, "--generate")
    assert "is a sequence classifier, which generates no answers" in done.error
    write_lines(tmp_path / "short.jsonl", [{"prompt": "abc", "completion": "d"}] * 2)
    done = fedpeft(
        "adapter", "eval", inputs.adapter("gpt2"), "--data", tmp_path / "short.jsonl", "--generate"
    )
    assert "--max-new-tokens 64 are above the 16 positions" in done.error and "at most 13" in done.error


def test_a_base_without_the_tokens_of_the_adapter_has_no_figures(fedpeft, inputs, tmp_path):
    """huggingface/peft#1300: rows of its embeddings that were made for the adapter would be made up."""
    with quiet():
        save_adapter(
            tmp_path / "adapter",
            inputs.base("llama"),
            lora(modules_to_save=["embed_tokens", "lm_head"]),
            rows=106,
        )
    tokens = tokenizer()
    tokens.add_tokens(["question", "held", "yes", "no"])
    tokens.save_pretrained(tmp_path / "adapter")
    result = figures(fedpeft, tmp_path / "adapter", inputs.data("held.jsonl"), "--max-new-tokens", MOST)
    assert result["base"] is None and result["generated"]["unfinished"] <= 1
