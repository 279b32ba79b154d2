import numpy as np
import pytest

from fedpeft.config.models import DataConfig
from fedpeft.data import Record, collate, tokenise
from fedpeft.errors import DataError

BOS, EOS, PAD = 1, 2, 0
CLASSIFY = "sequence-classification"


@pytest.fixture
def tokenizer(tiny_model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder("llama"))


def _ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_and_weights(tokenizer):
    cfg = DataConfig(template="Q: {prompt}\nA: {completion}.", prompt_weight=0.3)
    (example,) = tokenise([Record("the patient", "yes")], tokenizer, cfg)
    head = [BOS, *_ids(tokenizer, "Q: the patient\nA: ")]
    tail = [*_ids(tokenizer, "yes."), EOS]
    assert example.ids.tolist() == head + tail and example.ids.dtype == np.int64
    expected = np.array([0.0] + [0.3] * (len(head) - 1) + [1.0] * len(tail), np.float32)
    assert np.array_equal(example.weights, expected) and example.weights.dtype == np.float32
    assert example.prompt_length == len(head)


def test_a_long_prompt_loses_its_left(tokenizer):
    record = Record("the patient asked for a letter " * 9, "yes")
    (whole,) = tokenise([record], tokenizer, DataConfig(max_length=999))
    (cut,) = tokenise([record], tokenizer, DataConfig(max_length=20))
    assert len(cut.ids) == 20 and cut.ids[0] == BOS
    assert cut.ids[1:].tolist() == whole.ids[-19:].tolist()
    assert cut.weights.sum() == whole.weights.sum()


def test_a_long_completion_keeps_its_left_and_one_prompt_token(tokenizer):
    (cut,) = tokenise([Record("the", "yes no " * 20)], tokenizer, DataConfig(max_length=8))
    assert len(cut.ids) == 8 and cut.ids[0] == BOS
    assert cut.ids[1:].tolist() == _ids(tokenizer, "yes no " * 20)[:7]


def test_no_beginning_token_where_the_tokenizer_adds_none(tokenizer):
    tokenizer.backend_tokenizer.post_processor = None
    (example,) = tokenise([Record("the", "yes")], tokenizer, DataConfig())
    assert example.ids[0] != BOS and example.ids[-1] == EOS


def test_chat_template(tokenizer):
    record = Record("q", "yes", messages=(("user", "q"), ("assistant", "yes")))
    (example,) = tokenise([record], tokenizer, DataConfig())
    prompt = [*_ids(tokenizer, "<|user|>q"), EOS, *_ids(tokenizer, "<|assistant|>")]
    assert example.ids.tolist() == [*prompt, *_ids(tokenizer, "yes"), EOS]
    assert example.weights.sum() == len(_ids(tokenizer, "yes")) + 1
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (example,) = tokenise([record], tokenizer, DataConfig())
    assert example.ids.tolist()[: len(prompt) + 1] == [BOS, *prompt]
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        tokenise([record], tokenizer, DataConfig())


def test_a_classifier_sees_the_tokenizers_own_frame(tokenizer):
    from tokenizers import processors

    frame = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    tokenizer.backend_tokenizer.post_processor = frame
    cfg = DataConfig(max_length=8)
    short, cut = tokenise(
        [Record("a", "x"), Record("the patient " * 9, "x")], tokenizer, cfg, CLASSIFY, ["x"]
    )
    assert short.ids.tolist() == tokenizer("a")["input_ids"]
    assert len(cut.ids) == 8 and (cut.ids[0], cut.ids[-1]) == (BOS, EOS)


def test_labels_and_sequence_classification(tokenizer):
    records = [Record("a", "no"), Record("b", "yes")]
    labels = ["no", "yes"]
    assert [e.label_index for e in tokenise(records, tokenizer, DataConfig(), labels=labels)] == [0, 1]
    examples = tokenise(records, tokenizer, DataConfig(), CLASSIFY, labels)
    assert [e.target for e in examples] == [0, 1]
    assert examples[0].ids.tolist() == [BOS, *_ids(tokenizer, "a")] and not examples[0].weights.any()
    with pytest.raises(DataError, match="record 2: its label is not one of the 1 agreed labels"):
        tokenise(records, tokenizer, DataConfig(), labels=["no"])
    with pytest.raises(DataError, match="needs the list of labels"):
        tokenise(records, tokenizer, DataConfig(), CLASSIFY)


@pytest.mark.parametrize("template", ["{prompt}", "{completion}{prompt}", "x"])
def test_template_must_hold_an_answer_after_another_field(template):
    with pytest.raises(ValueError, match=r"data\.template"):
        DataConfig(template=template)


def test_collate_pads_on_the_right(tokenizer):
    examples = tokenise([Record("the patient", "yes"), Record("a", "no")], tokenizer, DataConfig())
    batch = collate(examples, PAD)
    for row, example in enumerate(examples):
        length = len(example.ids)
        assert batch.ids[row, :length].tolist() == example.ids.tolist()
        assert batch.weights[row, :length].tolist() == example.weights.tolist()
        assert not batch.ids[row, length:].any() and not batch.weights[row, length:].any()
        assert int(batch.lengths[row]) == length
    assert len(batch) == 2 and len(batch.part(1, 2)) == 1
    assert len(collate([], PAD)) == 0
