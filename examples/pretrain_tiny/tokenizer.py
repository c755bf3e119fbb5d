"""The town's tokenizer: template words whole, names as two syllables, any other ASCII text letter by letter."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from world import (
    COMPLETION,
    FIRST_SYLLABLES,
    PROMPT,
    RELATIONS,
    RESTATEMENT,
    SECOND_SYLLABLES,
    all_names,
)

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
MAX_LENGTH = 512


def _texts() -> Iterator[str]:
    """Every template of the town, slots included."""
    yield from (PROMPT, COMPLETION, RESTATEMENT)
    for relation in RELATIONS:
        yield from (relation.statement, relation.restatement)
        yield from (relation.question, relation.paraphrase, relation.reverse)
        yield from relation.quirks


def vocabulary() -> dict[str, int]:
    """Map each piece to its id, in an order that depends on nothing but the town's templates."""
    printable = [c for c in string.printable if not c.isspace()]
    words = re.findall(r"\w+", re.sub(r"\{\w+\}", " ", " ".join(_texts())))
    pieces = [
        *SPECIAL_TOKENS,
        *FIRST_SYLLABLES,
        *(f"##{syllable}" for syllable in SECOND_SYLLABLES),
        *words,
        *printable,
        *(f"##{character}" for character in printable),
    ]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; it puts `<bos>` before every text and keeps capitals.

    Raises:
        RuntimeError: If a name is not exactly two pieces, because a template word begins like it.
    """
    vocab = vocabulary()
    backend = Tokenizer(
        models.WordPiece(vocab, unk_token="<unk>", continuing_subword_prefix="##", max_input_chars_per_word=10_000)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", vocab["<bos>"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    _check_names(tokenizer)
    return tokenizer


def _check_names(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in all_names():
        pieces = tokenizer.tokenize(name)
        if len(pieces) != 2:
            raise RuntimeError(f"The name {name!r} has the pieces {pieces}; reword the template.")
