"""How much of a memory fits the context along with prompt, request and answer."""

from __future__ import annotations

from ..config import RunConfig
from .prompts import Prompter
from .templates import Template

MIN_WINDOW = 16  # tokens


def window_size(config: RunConfig, prompter: Prompter, context: int) -> int:
    """Return how many tokens of a memory fit the context along with the longest prompt, request and answer.

    Raises:
        `ValueError`: if fewer than 16 do.
    """
    data = config.dataset
    prompt = 0
    for template in map(Template.load, data.templates):
        prompts = [template.respond] if template.ask is None else [template.respond, template.ask]
        lengths = [len(prompter(p, context="x", request="x", source="memory")[0]) for p in prompts]
        prompt = max(prompt, *lengths)
    request = max(data.max_new_tokens, config.evaluation.max_new_tokens)
    answer = max(data.max_new_tokens, config.seeding.max_completion_length)
    size = context - prompt - request - answer
    if size < MIN_WINDOW:
        raise ValueError(
            f"A context of {context} tokens leaves {size} for a memory, after {prompt} for the prompt, {request} for "
            f"the question and {answer} for the answer. Lower dataset.max_new_tokens and "
            f"seeding.max_completion_length, or raise max_context."
        )
    return size
