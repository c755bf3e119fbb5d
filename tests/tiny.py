"""Tiny models of every supported architecture, made in memory, with random weights from a fixed seed."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

COMMON = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FORMS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8},
    "phi3": LLAMA,
    "phi": LLAMA,
    "gpt_neox": {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
    "gpt2": {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gptj": {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "starcoder2": LLAMA,
    "falcon": {
        **COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bias": True,
    },
    "nemotron": LLAMA,
    "lfm2": {**LLAMA, "intermediate_size": 72, "block_multiple_of": 16, "layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        **LLAMA,
        "shared_intermediate_size": 48,
        "num_local_experts": 0,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
    },
    "qwen2_moe": {
        **LLAMA,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 40,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}

# Convolutions and Mamba keep a state that rows cannot share, as they share keys and values.
RECURRENT = ("lfm2", "granitemoehybrid")
ATTENTIVE = [form for form in FORMS if form not in RECURRENT]


def tiny_model(form: str = "llama", seed: int = 0, **overrides: object) -> PreTrainedModel:
    """Make a model whose logits are far from uniform, so that a wrong weight shows."""
    config = CONFIG_MAPPING[form](**{**FORMS[form], **overrides})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer of 97 entries: four special tokens, the words of the tests, and fillers."""
    words = "the cat of Mira is called Tolu and it eats hats while boat Ben sleeps".split()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *words])}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), 97)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of 257 entries that knows every text: a byte is a token."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(["<s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", padding_side="left")
