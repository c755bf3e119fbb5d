"""How much of a memory fits the context along with prompt, request and answer."""

from __future__ import annotations

from ..config import RunConfig
from .prompts import Prompter
from .templates import Template

MIN_WINDOW = 16  # tokens


def sentence_size(context: int) -> int:
    """Return how many tokens of a sentence are shown to the teacher when it is asked about it, with its window."""
    return context // 16


def window_size(config: RunConfig, prompter: Prompter, context: int, title: int = 0) -> int:
    """Return how many tokens of a memory fit the context along with the longest prompt, request and answer. A title of
    `title` tokens may come before the memory and before the request.

    Raises:
        `ValueError`: if fewer than 16 do.
    """
    data = config.dataset
    prompt = 0
    for template in map(Template.load, data.templates):
        prompts = [template.respond] if template.ask is None else [template.respond, template.ask]
        lengths = [len(prompter(p, context="x", request="x", source="memory", sentence=None)[0]) for p in prompts]
        prompt = max(prompt, *lengths)
    request = max(data.max_new_tokens, config.evaluation.max_new_tokens)
    answer = max(data.max_new_tokens, config.seeding.max_completion_length)
    sentence = sentence_size(context) if any(Template.load(name).is_per_sentence for name in data.templates) else 0
    size = context - prompt - 2 * title - sentence - request - answer
    if size < MIN_WINDOW:
        raise ValueError(
            f"A context of {context} tokens leaves {size} for a memory, after {prompt} for the prompt, {request} for "
            f"the question and {answer} for the answer. Lower dataset.max_new_tokens and "
            f"seeding.max_completion_length, or raise max_context."
        )
    return size
