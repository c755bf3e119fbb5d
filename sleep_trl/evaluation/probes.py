"""What measures the base skill: questions about passages, and texts. They are the user's, or those that the package
ships, as far as the model can read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from ..data.documents import MemoryText
from ..data.prompts import Prompter
from ..data.shipped_sets import MEASURED, find_unreadable, read_shipped
from ..data.windows import token_windows
from .recall import QAItem, sample_items
from .retention import READING

Item = TypeVar("Item")

READING_QUESTIONS = 150  # of 210: the same in every night, three or four to a passage
LONGEST_WINDOW = 1024  # tokens
PROSE = "shipped prose texts"


@dataclass(frozen=True)
class Probe(Generic[Item]):
    """What is measured, and what it is called.

    Args:
        name (`str`): which set, and how much of it.
        items (`list`): questions, or windows of tokens; empty if the measure is left out.
        left_out (`str`, *optional*): why it is.
    """

    name: str
    items: list[Item] = field(default_factory=list)
    left_out: str | None = None


def reading_probe(
    given: Sequence[MemoryText], file: str, prompter: Prompter, room: int, most: int, seed: int
) -> Probe[QAItem]:
    """Return the questions that measure the base skill, each with its passage.

    Args:
        given (`Sequence[MemoryText]`):
            The user's passages with questions; if empty, the shipped ones.
        file (`str`):
            Name of the user's file.
        prompter (`Prompter`):
            Of the model.
        room (`int`):
            Tokens that a passage may have; longer shipped ones are left out.
        most (`int`):
            Most questions; of more, so many are drawn.
        seed (`int`):
            Seed for drawing them.
    """
    if given:
        items = [QAItem(q.question, q.answers, m.text) for m in given for q in m.questions]
        return _asked(items, f"questions of {file}", most, seed)
    passages = read_shipped("reading")
    if reason := find_unreadable(prompter.tokenizer, passages, "passages", "evaluation.skill"):
        return Probe(READING, left_out=reason)
    fitting = [m for m in passages if prompter.count_tokens(m.text) <= room]
    turns = [(turn, number) for number, m in enumerate(fitting) for turn in range(len(m.questions))]
    chosen = sorted(sorted(turns)[:READING_QUESTIONS], key=lambda pair: pair[::-1])
    items = [
        QAItem(fitting[number].questions[turn].question, fitting[number].questions[turn].answers, fitting[number].text)
        for turn, number in chosen
    ]
    if not items:
        return Probe(READING, left_out=f"no shipped passage fits {room} tokens of context; give evaluation.skill")
    return _asked(items, READING, most, seed)


def _asked(items: Sequence[QAItem], what: str, most: int, seed: int) -> Probe[QAItem]:
    asked = sample_items(items, most, seed)
    of_all = f" of {len(items):,}" if len(asked) < len(items) else ""
    return Probe(f"{len(asked):,}{of_all} {what}", asked)


def perplexity_probe(
    given: Sequence[MemoryText], file: str, tokenizer: PreTrainedTokenizerBase, context: int
) -> Probe[list[int]]:
    """Return the texts on which the perplexity is measured, as windows of tokens.

    Args:
        given (`Sequence[MemoryText]`):
            The user's texts; if empty, half of the shipped prose.
        file (`str`):
            Name of the user's file.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        context (`int`):
            Tokens that the model can see; a window has at most that many, and at most 1,024.
    """
    texts = list(given) or read_shipped("prose")[MEASURED]
    if not given and (reason := find_unreadable(tokenizer, texts, "prose", "evaluation.perplexity")):
        return Probe(PROSE, left_out=reason)
    windows = token_windows([m.text for m in texts], tokenizer, min(context, LONGEST_WINDOW))
    tokens = f"{sum(map(len, windows)):,} tokens"
    what = f"{len(texts)} texts of {file}" if given else f"{len(texts)} {PROSE}"
    if not windows:
        return Probe(what, left_out="the texts have fewer than two tokens")
    return Probe(f"{what}, {tokens}", windows)
