"""Recall on questions, and agreement of the grown model with the pretrained one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.prompts import Prompter
from ..data.templates import Template
from ..memory import Memory
from ..rollout import Engine, Progress, Sampling
from .metrics import contains, exact_match, f1

METRICS = {"exact": exact_match, "contains": contains, "f1": f1}


@dataclass(frozen=True)
class QAItem:
    """A question with its accepted answers, and the text that contains them (to ask with context)."""

    question: str
    answers: tuple[str, ...]
    context: str | None = None


def ask(
    items: Sequence[QAItem],
    engine: Engine,
    prompter: Prompter,
    *,
    with_context: bool,
    metric: str,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> float | None:
    """Ask questions with greedy decoding and return the mean score.

    Args:
        items (`Sequence[QAItem]`):
            The questions.
        engine (`Engine`):
            Generates the answers, with the experts it has.
        prompter (`Prompter`):
            Makes the prompts, from the `question_answer` template.
        with_context (`bool`):
            Whether to put the text that contains the answer before the question.
        metric (`str`):
            `"exact"`, `"contains"` or `"f1"`, see [`sleep_trl.evaluation.metrics`].
        max_new_tokens (`int`):
            Maximum length of a reply in tokens.
        progress (`Callable[[int], None]`, *optional*):
            Called with the number of answered questions.

    Returns:
        `float` in [0, 1], or `None` if there are no questions.
    """
    if not items:
        return None
    template = Template.load("question_answer")
    prompts = [
        prompter(template.respond, request=q.question, context=q.context if with_context else None) for q in items
    ]
    sampling = Sampling(max_new_tokens, temperature=0.0, stop=prompts[0][2])
    replies = engine.generate([ids for ids, _, _ in prompts], sampling, progress)
    score = METRICS[metric]
    scores = [float(score(reply.text, list(q.answers))) for reply, q in zip(replies, items, strict=True)]
    return sum(scores) / len(scores)


def window_with_answer(windows: Sequence[str], answers: Sequence[str]) -> str:
    """Return the first window of a memory that contains an answer (an oracle), or else the first window."""
    return next((w for w in windows if any(a.casefold() in w.casefold() for a in answers)), windows[0])


def sample_items(items: Sequence[QAItem], most: int, seed: int) -> list[QAItem]:
    """Return at most `most` questions, sampled with `seed`, in their order."""
    if len(items) <= most:
        return list(items)
    chosen = random.Random(seed).sample(range(len(items)), most)
    return [items[i] for i in sorted(chosen)]


@torch.no_grad()
def agreement(memory: Memory, sequences: Sequence[list[int]]) -> float | None:
    """Return the share of positions at which the grown and the pretrained model predict the same next token.

    Args:
        memory (`Memory`):
            Memory of the model. The model runs without dropout and is left in its previous mode.
        sequences (`Sequence[list[int]]`):
            Token ids of texts, such as general samples.

    Returns:
        `float` in [0, 1], or `None` if there are no texts.
    """
    model, was_training = memory.model, memory.model.training
    model.eval()
    same = total = 0
    for sequence in sequences:
        ids = torch.tensor([sequence], device=model.device)
        with memory.as_base():
            base = model(input_ids=ids).logits.argmax(-1)
        grown = model(input_ids=ids).logits.argmax(-1)
        same += int((base == grown).sum())
        total += base.numel()
    model.train(was_training)
    return same / total if total else None
