"""Makes the folder of a random Llama: config.json, model.safetensors, and a tokenizer of one word a token ("t17 t4").

usage: model.py DIR [--big]

The weights are so large (about 1/sqrt(fan in), attention's three times that) that the content of the KV cache decides the greedy tokens: with smaller ones
every comparison of tokens passes, even with pages swapped.  --big: about 100 million parameters, for figures.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file

VOCABULARY = 1024
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
BIG = dict(hidden_size=768, intermediate_size=2304, num_hidden_layers=14, num_attention_heads=12, num_key_value_heads=4, head_dim=64)


def config(size, dtype):
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0,
        hidden_act="silu", bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype=dtype, **size,
    )  # fmt: skip


def weights(size, dtype):
    random = torch.Generator().manual_seed(7)

    def matrix(rows, columns, scale=1.0):
        return (torch.randn(rows, columns, generator=random) * columns**-0.5 * scale).to(dtype)

    h, i, d = size["hidden_size"], size["intermediate_size"], size["head_dim"]
    q, kv = size["num_attention_heads"] * d, size["num_key_value_heads"] * d
    made = {"model.embed_tokens.weight": torch.randn(VOCABULARY, h, generator=random).to(dtype)}
    for layer in range(size["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows, columns, scale in (
            ("self_attn.q_proj", q, h, 3), ("self_attn.k_proj", kv, h, 3), ("self_attn.v_proj", kv, h, 3), ("self_attn.o_proj", h, q, 3),
            ("mlp.gate_proj", i, h, 1), ("mlp.up_proj", i, h, 1), ("mlp.down_proj", h, i, 1),
        ):  # fmt: skip
            made[f"{at}{name}.weight"] = matrix(rows, columns, scale)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{at}{name}.weight"] = torch.ones(h, dtype=dtype)
    made["model.norm.weight"], made["lm_head.weight"] = torch.ones(h, dtype=dtype), matrix(VOCABULARY, h)
    return made


def tokenizer():
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, VOCABULARY)}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip


def main():
    folder, size = sys.argv[1], BIG if "--big" in sys.argv else TINY
    name = "bfloat16" if "--big" in sys.argv else "float32"
    os.makedirs(folder, exist_ok=True)
    made = weights(size, getattr(torch, name))
    save_file(made, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    for file, content in (
        ("config.json", config(size, name)),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
    ):
        with open(os.path.join(folder, file), "w", encoding="utf-8") as f:
            json.dump(content, f)
    print(f"{sum(t.numel() for t in made.values())} parameters, {name}")


if __name__ == "__main__":
    main()
