"""A GGUF file, written here by the format's own package, becomes a base that computes the same."""

import json

import gguf
import numpy as np
import pytest
import torch

from fedpeft.bases import load_base
from fedpeft.bases.gguf import import_gguf
from fedpeft.config.models import BaseConfig
from fedpeft.errors import BaseModelError

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def rotary_order(weight, heads):
    """Rows of a query or key projection as llama.cpp keeps them: pairs of the rotation side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, base, leave_out=()):
    model, config = base.model, base.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = sorted(base.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    merges = json.loads(base.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, tensor in model.state_dict().items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        known = NAMES.get(name) or f"blk.{layer}.{NAMES[rest]}"
        values = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = rotary_order(values, heads)
        if known not in leave_out:
            writer.add_tensor(known, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_imported_base_computes_what_the_file_holds(tiny_llama, tmp_path):
    ids = torch.arange(3, 40)[None]
    want = tiny_llama.model(ids).logits
    write_gguf(tmp_path / "model.gguf", tiny_llama)
    made = import_gguf(tmp_path / "model.gguf", tmp_path / "base", "float32")
    again = import_gguf(tmp_path / "model.gguf", tmp_path / "again", "float32")
    imported = load_base(BaseConfig(model=str(made.folder)))
    assert torch.allclose(imported.model(ids).logits, want, atol=1e-5)
    assert made.architecture == "llama"
    assert made.parameters == tiny_llama.parameters
    assert made.sha256 == again.sha256 == imported.sha256


def test_what_is_no_model_is_refused_and_nothing_is_written(tiny_llama, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(BaseModelError, match="no GGUF file"):
        import_gguf(tmp_path / "other.gguf", tmp_path / "base")
    with pytest.raises(BaseModelError, match="is no file"):
        import_gguf(tmp_path / "missing.gguf", tmp_path / "base")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(BaseModelError, match="cannot be read"):
        import_gguf(tmp_path / "cut.gguf", tmp_path / "base")
    write_gguf(tmp_path / "part.gguf", tiny_llama, leave_out={"blk.1.ffn_up.weight"})
    with pytest.raises(BaseModelError, match="up_proj"):
        import_gguf(tmp_path / "part.gguf", tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert not list(tmp_path.glob(".base*"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine").touch()
    with pytest.raises(BaseModelError, match="not empty"):
        import_gguf(tmp_path / "part.gguf", tmp_path / "base")
