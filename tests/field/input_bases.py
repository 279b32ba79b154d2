"""Tiny bases as people bring them; random weights, one token for each printable character."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 102
CHATML = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
NO_SYSTEM = (
    "{% if messages[0]['role']=='system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def tokenizer(extra_pad=False, chat=None):
    """A character tokenizer; with ``extra_pad`` its padding token has an id beyond the embeddings."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "\n"]
    words = special + [chr(code) for code in range(32, 127)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if extra_pad:
        made.add_special_tokens({"pad_token": "[PAD]"})
    if chat:
        made.chat_template = chat
    return made


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes))


def _gpt2():
    settings = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))


def _roberta():
    settings = BERT | {
        "num_hidden_layers": 1,
        "max_position_embeddings": 18,
        "pad_token_id": 0,
        "num_labels": 2,
    }
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**settings))


def _xlnet():
    settings = {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 48}
    return transformers.XLNetLMHeadModel(transformers.XLNetConfig(**settings))


def _roformer():
    settings = BERT | {"embedding_size": 32, "num_hidden_layers": 1, "is_decoder": True}
    return transformers.RoFormerForCausalLM(transformers.RoFormerConfig(**settings))


def _reversible():
    """A Reformer: its layers compute their gradients apart from autograd, and none reaches an adapter."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "feed_forward_size": 48, "is_decoder": True}
    heads = {"num_attention_heads": 2, "attention_head_size": 16, "attn_layers": ["local"] * 2}
    positions = {"axial_pos_embds": False, "max_position_embeddings": 512}
    return transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**sizes, **heads, **positions))


def _mamba():
    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**settings))


def _experts():
    settings = LLAMA | {
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "head_dim": 8,
    }
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**settings))


def _with_vision():
    text = LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=VOCABULARY - 1
        )
    )


def _not_finite():
    model = llama()
    torch.nn.init.constant_(model.model.layers[0].mlp.down_proj.weight, float("nan"))
    return model


def _finite_in_float32_alone():
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(3e4)
            layer.mlp.gate_proj.weight.mul_(3e4)
    return model


def make(folder: Path) -> None:
    """Write all bases below a folder."""
    torch.manual_seed(0)
    plain = {
        "llama": llama,
        "tied": lambda: llama(tie_word_embeddings=True),
        "gpt2-16": _gpt2,
        "bert": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**BERT)),
        "roberta514": _roberta,
        "xlnet": _xlnet,
        "roformer": _roformer,
        "reversible": _reversible,
        "mamba": _mamba,
        "qwen3-moe": _experts,
        "gemma3-mm": _with_vision,
        "nan": _not_finite,
        "hot-fp16": _finite_in_float32_alone,
    }
    for name, model in plain.items():
        _save(folder / name, model())
    for name, chat in (("chatml", CHATML), ("think", THINK), ("nosystem", NO_SYSTEM)):
        _save(folder / name, llama(), chat=chat)
    _save(folder / "padid", llama(), extra_pad=True)


def _save(folder: Path, model, **options) -> None:
    model.save_pretrained(folder)
    tokenizer(**options).save_pretrained(folder)
