"""A tiny model of Llama's form with its tokenizer, made on the spot: what engines and trainer are tried out with."""

from __future__ import annotations

import torch
from accelerate import PartialState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

CONTEXT = 256  # tokens: more than a block of vLLM's prefix cache
WORDS = 509
SPREAD = 0.12  # of the weights: logits far from uniform, so that a wrong weight shows


def make_model() -> PreTrainedModel:
    """Make the model on this process's device, in float32."""
    config = LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,  # of size 64, which every engine knows
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, SPREAD)
    return model.to(PartialState().device).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of as many words as the model has."""
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *(f"w{n}" for n in range(WORDS))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", unk_token="w0", **special)
