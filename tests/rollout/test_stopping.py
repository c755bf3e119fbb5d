"""Where completions end, on tokenizers that write a character as several tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sleep_trl.rollout import Sampling
from sleep_trl.rollout.stopping import complete, tokens_before


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama's way: an unknown character is its bytes, and an incomplete one decodes to a "�" for each byte."""
    entries = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁"]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def byte_level(*merged: str) -> PreTrainedTokenizerFast:
    """GPT-2's way: every token is bytes. Further tokens are merged from single ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: i for i, entry in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in merged:
        symbols = level.pre_tokenize_str(text)[0][0]
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocabulary:
                vocabulary[symbols[:end]] = len(vocabulary)
                merges.append((symbols[: end - 1], symbols[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("make", [byte_fallback, byte_level])
@pytest.mark.parametrize("text", ["東京", "a東", "서울입니다", "नई", "👨‍👩‍👧", "é", "ab", ""])
@pytest.mark.parametrize("stop", ["\n", "。", "終わり"])
def test_no_character_is_lost_before_a_stop_string(make, text, stop) -> None:
    tokenizer = make()
    ids = tokenizer(text + stop + "b京", add_special_tokens=False)["input_ids"]
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens_before(ids, (stop,), tokenizer) == len(before)
    found = complete(ids, Sampling(64, stop=(stop,)), tokenizer, ())
    assert (found.text, found.ids, found.stop_reason) == (text, before, "stop")


@pytest.mark.parametrize("text", ["東京。", "Yes.", "नमस्ते।"])
def test_a_token_that_ends_the_text_and_begins_the_stop_string_is_kept(text) -> None:
    """Qwen's and Llama's vocabularies have ".\\n" as one token; without it, a reference would lack its full stop."""
    tokenizer = byte_level(text[-1] + "\n")
    ids = tokenizer(text + "\nQuestion", add_special_tokens=False)["input_ids"]
    found = complete(ids, Sampling(64, stop=("\n",)), tokenizer, ())
    assert found.text == text and tokenizer.decode(found.ids) == text + "\n"


def test_white_space_before_a_stop_string_is_not_counted() -> None:
    tokenizer = byte_level()
    ids = tokenizer("東 \nb", add_special_tokens=False)["input_ids"]
    assert tokens_before(ids, ("\n",), tokenizer) == 3
    assert tokens_before(ids, ("none",), tokenizer) == len(ids)
    assert tokens_before(ids, (), tokenizer) == len(ids)
