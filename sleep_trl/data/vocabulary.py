"""Whether a tokenizer has words for a text, or only spells it (ours). A small vocabulary with all letters spells every
text without an unknown token, but its model has never read such words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from .shipped_sets import MOST_UNKNOWN, unknown_share

WORD = re.compile(r"[^\W\d_]{4,}")
LETTERS_PER_TOKEN = 2  # a word with fewer is spelled
MOST_SPELLED = 0.3  # share of words; of English, a model's own vocabulary spells a few percent
MOST_WORDS = 5000  # different ones, which are tried


def spelled_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the share of the different words of texts that a tokenizer does not know or spells nearly letter by
    letter, in [0, 1].

    Words have four letters or more, in a script with lower and upper case: in others a letter may be a word. It is 0
    for a tokenizer that has no words at all, such as one of bytes, whose model reads letters.
    """
    own = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    found = dict.fromkeys(word for text in texts for word in WORD.findall(text) if word.lower() != word.upper())
    words = list(found)[:: 1 + len(found) // MOST_WORDS]
    if not words or not any(WORD.fullmatch(piece.strip("#▁Ġ")) for piece in own):
        return 0.0
    written = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    spelled = [
        tokenizer.unk_token_id in ids or len(word) < LETTERS_PER_TOKEN * len(ids)
        for word, ids in zip(words, written, strict=True)
    ]
    return sum(spelled) / len(spelled)


def find_unread(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """Return why a model can hardly read texts, or `None` if it may."""
    if (share := spelled_share(tokenizer, texts)) > MOST_SPELLED:
        return f"the tokenizer spells {share:.0%} of the different words of the documents, or does not know them"
    if (share := unknown_share(tokenizer, texts)) > MOST_UNKNOWN:
        return f"the tokenizer does not know {share:.0%} of the tokens of the documents"
    return None
