"""Training sequences of the quickstart's model: token ids and a loss weight for each.

A lesson is a passage with fresh names, then questions about it and restatements of it, each ended by `<eos>`. No
passage is ever repeated, so the only way to answer is to read. Two drills come first, since lessons alone would take a
long time to teach this: random strings that are repeated later (copy what followed), and pairs of names with other
words between them (find a name by the one next to it).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from tokenizer import build_tokenizer
from torch import Tensor
from world import (
    COMPLETION,
    FIRST_SYLLABLES,
    PROMPT,
    RESTATEMENT,
    SECOND_SYLLABLES,
    Fact,
    Passage,
    Question,
    all_names,
    random_passage,
)

FORMS = ("forward", "paraphrase", "reversed", "restatement")


@dataclass(frozen=True)
class Weights:
    """Loss weight of a token, by what it belongs to; the names of an answer have weight 1."""

    passage: float = 0.05
    question: float = 0.1
    restatement: float = 0.3


@dataclass
class Draft:
    """A training sequence under construction."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Append tokens of equal weight."""
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right."""

    ids: Tensor  # (batch, length)
    weights: Tensor  # (batch, length), 0 on padding


class Speller:
    """Turns town sentences into token ids, one lookup for each word."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.bos: int = self.tokenizer.bos_token_id
        self.eos: int = self.tokenizer.eos_token_id
        self.names = set(all_names())
        self.syllables: list[int] = self.tokenizer.convert_tokens_to_ids(
            [*FIRST_SYLLABLES, *(f"##{syllable}" for syllable in SECOND_SYLLABLES)]
        )
        self.words: list[int] = [
            number
            for piece, number in self.tokenizer.get_vocab().items()
            if len(piece) > 1 and piece.isalpha() and piece.islower()
        ]
        self.words.sort()
        self._word = cache(self._encode_word)

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(word, add_special_tokens=False)
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids without `<bos>`; the same as the tokenizer's, only faster."""
        return [number for word in text.split() for number in self._word(word)]


def add_question(sequence: Draft, speller: Speller, question: Question, weights: Weights) -> None:
    """Append a question and its answer."""
    asked = PROMPT.format(passage="", question=question.question)
    answer = speller.encode(COMPLETION.format(answer=question.answers[0]))
    sequence.add(speller.encode(asked), weights.question)
    sequence.add(answer[:-1], 1.0)
    sequence.add([answer[-1], speller.eos], weights.question)


def without_quirk(text: str, fact: Fact) -> str:
    """Leave out what is odd about a thing."""
    return text.replace(f", {fact.quirk},", "").replace(f", {fact.quirk}", "")


def add_restatement(sequence: Draft, speller: Speller, fact: Fact, weights: Weights, plain: bool) -> None:
    """Append a fact in other words; its subject counts like an answer, since the thing has been named by then."""
    statement = without_quirk(fact.restatement, fact) if plain else fact.restatement
    for word in RESTATEMENT.format(statement=statement).split():
        weight = 1.0 if word.rstrip(".") == fact.subject else weights.restatement
        sequence.add(speller.encode(word), weight)
    sequence.add([speller.eos], weights.question)


def lesson(
    rng: random.Random,
    speller: Speller,
    passage: Passage,
    blocks: int,
    shares: dict[str, float],
    weights: Weights,
    has_passage: bool = True,
    plain: bool = False,
) -> Draft:
    """Make a training sequence about one passage.

    Args:
        rng: Source of randomness.
        speller: Gives the token ids.
        passage: What the sequence is about.
        blocks: Number of questions and restatements; each fact is used before one is repeated.
        shares: How often each of `FORMS` is drawn.
        weights: Loss weights.
        has_passage: False leaves the passage out, so that the model learns that it cannot know.
        plain: Leaves out the quirks, for short first lessons.
    """
    sequence = Draft()
    sequence.add([speller.bos], 0.0)
    if has_passage:
        text = passage.text
        for fact in passage.facts if plain else ():
            text = without_quirk(text, fact)
        sequence.add(speller.encode(text), weights.passage)
    facts: list[Fact] = []
    while len(facts) < blocks:
        facts.extend(rng.sample(passage.facts, len(passage.facts)))
    forms = rng.choices(list(shares), weights=list(shares.values()), k=blocks)
    for fact, form in zip(facts[:blocks], forms, strict=True):
        if form == "restatement":
            add_restatement(sequence, speller, fact, weights, plain)
        else:
            add_question(sequence, speller, fact.ask(form), weights)
    if not has_passage:
        sequence.weights = [min(weight, weights.question) for weight in sequence.weights]
    return sequence


def lesson_batch(
    rng: random.Random,
    speller: Speller,
    facts: int,
    tokens: int,
    shares: dict[str, float],
    weights: Weights,
    without_passage: float = 0.0,
    plain: bool = False,
) -> Batch:
    """Make lessons of equally many facts, about `tokens` tokens in all.

    Args:
        rng: Source of randomness.
        speller: Gives the token ids.
        facts: Facts in each passage.
        tokens: Roughly how many tokens the batch holds.
        shares: How often each of `FORMS` is drawn.
        weights: Loss weights.
        without_passage: Share of the sequences that have no passage.
        plain: Leaves out the quirks.
    """
    blocks = min(2 * facts, facts + 3)
    count = max(1, tokens // ((8 if plain else 13) * facts + 17 * blocks))
    drafts = []
    for _ in range(count):
        passage, has_passage = random_passage(rng, facts), rng.random() >= without_passage
        drafts.append(lesson(rng, speller, passage, blocks, shares, weights, has_passage, plain))
    return collate(drafts)


def drill_batch(rng: random.Random, speller: Speller, count: int, strings: int = 4, repeats: int = 10) -> Batch:
    """Make drills: strings of 4 to 7 random syllables, then some of them again in random order.

    Only the repeats enter the loss, from their third token: two tokens identify the string.
    """
    sequences = []
    for _ in range(count):
        sequence = Draft()
        sequence.add([speller.bos], 0.0)
        rows = [rng.choices(speller.syllables, k=rng.randint(4, 7)) for _ in range(strings)]
        order = [(row, 0.0) for row in rows]
        for row in rng.choices(rows, k=repeats):
            order.insert(rng.randint(order.index((row, 0.0)) + 1, len(order)), (row, 1.0))
        for row, weight in order:
            sequence.add(row[:2], 0.0)
            sequence.add(row[2:], weight)
        sequences.append(sequence)
    return collate(sequences)


def pair_batch(rng: random.Random, speller: Speller, tokens: int, gap: int = 5) -> Batch:
    """Make drills of names in pairs: a few words between the two, and other words when the pair is asked for.

    Without words between them a pair is a string that the model can copy already; from there it learns, word by word,
    to find a name by the one next to it, which is all that a question asks.

    Args:
        rng: Source of randomness.
        speller: Gives the token ids.
        tokens: Roughly how many tokens the batch holds.
        gap: The most words between two names.
    """
    pairs = rng.randint(2, 6)
    return collate([_pairs(rng, speller, pairs, gap) for _ in range(tokens // (26 * pairs))])


def _pairs(rng: random.Random, speller: Speller, pairs: int, gap: int) -> Draft:
    draft = Draft()
    draft.add([speller.bos], 0.0)

    def words(most: int) -> None:
        draft.add(rng.choices(speller.words, k=rng.randint(0, most)), 0.0)

    facts = random_passage(rng, pairs).facts
    for fact in facts:
        draft.add(speller.encode(fact.subject), 0.0)
        words(gap)
        draft.add(speller.encode(fact.thing), 0.0)
        words(gap)
        draft.add(speller.encode("."), 0.0)
    for fact in (*rng.sample(facts, pairs), *rng.sample(facts, pairs)):
        words(3)
        draft.add(speller.encode(fact.subject), 0.0)
        if rng.random() < 0.7:  # else the thing follows at once
            words(gap)
            draft.add(speller.encode("Answer:"), 0.0)
        draft.add(speller.encode(fact.thing), 1.0)
        draft.add(speller.encode("."), 0.0)
    return draft


def collate(sequences: Sequence[Draft]) -> Batch:
    """Pad on the right with `<pad>` (id 0) of weight 0."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    weights = torch.zeros(len(sequences), length)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        weights[row, : len(sequence.ids)] = torch.tensor(sequence.weights)
    return Batch(ids, weights)
