"""The shipped data sets (described in shipped/README.md), and what of them a model can read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from importlib.resources import as_file, files

from transformers import PreTrainedTokenizerBase

from .documents import MemoryText
from .prompts import Prompter
from .sources import read_memories

MOST_UNKNOWN = 0.03  # share of a text's tokens that may be the unknown token
MEASURED, REPLAYED = slice(0, None, 2), slice(1, None, 2)  # of the shipped prose; nothing is measured on what is read


def read_shipped(name: str) -> list[MemoryText]:
    """Read a shipped data set: `"general_prompts"`, `"reading"` or `"prose"`."""
    with as_file(files("sleep_trl.data") / "shipped" / f"{name}.jsonl") as path:
        return read_memories(str(path))


def unknown_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the share of the tokens of texts that are the tokenizer's unknown token, in [0, 1]. It is 0 for a
    tokenizer of bytes, and near 1 for one of a few hundred words."""
    ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    return ids.count(tokenizer.unk_token_id) / len(ids) if ids else 0.0


def find_unreadable(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[MemoryText], what: str, option: str
) -> str | None:
    """Return why a model cannot read shipped texts, with the option that gives others, or `None` if it can."""
    share = unknown_share(tokenizer, [m.text for m in texts])
    if share <= MOST_UNKNOWN:
        return None
    return f"the tokenizer does not know {share:.0%} of the tokens of the shipped {what}; give {option}"


def readable_prompts(prompter: Prompter, room: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Return the shipped general prompts that a model can read, in random order.

    Args:
        prompter (`Prompter`):
            Makes prompts of them: messages for a chat model, beginnings of a text for a base model.
        room (`int`):
            Tokens that a prompt may have.
        seed (`int`):
            Seed for the order, so that the first of them are of many kinds.

    Returns:
        `tuple[list[str], Counter]`: the prompts, and the number of those left out by reason.
    """
    kept, left_out = [], Counter[str]()
    for prompt in read_shipped("general_prompts"):
        ids, _, beginning = prompter.general(prompt.text)
        if len(ids) + len(beginning) > room:
            left_out["longer than the context"] += 1
        elif unknown_share(prompter.tokenizer, [prompt.text]) > MOST_UNKNOWN:
            left_out["not in the tokenizer's vocabulary"] += 1
        else:
            kept.append(prompt.text)
    return random.Random(seed).sample(kept, len(kept)), left_out


def take(texts: Sequence[str], count: int, once: int) -> list[str]:
    """Return `count` texts: each once as long as there are enough, then in turn without the first `once`, if there are
    others."""
    again = texts[once:] or texts
    return [texts[i] if i < len(texts) else again[(i - len(texts)) % len(again)] for i in range(count if texts else 0)]
