"""How much of a memory fits the context beside prompt, request and answer."""

from __future__ import annotations

from ..config import RunConfig
from .prompts import Prompter
from .templates import Template


def window_size(config: RunConfig, prompter: Prompter, context: int) -> int:
    """Return how many tokens of a memory fit the context beside the longest prompt, request and answer.

    Raises:
        `ValueError`: if hardly any do.
    """
    data = config.dataset
    around = 0
    for template in map(Template.load, data.templates):
        prompts = [template.respond] if template.ask is None else [template.respond, template.ask]
        lengths = [len(prompter(p, context="x", request="x", source="memory")[0]) for p in prompts]
        around = max(around, *lengths)
    request = max(data.max_new_tokens, config.evaluation.max_new_tokens)
    answer = max(data.max_new_tokens, config.seeding.max_completion_length)
    ctx = context - around - request - answer
    if ctx < 16:
        raise ValueError(
            f"A context of {context} tokens leaves {ctx} for a memory, beside {around} of prompt, {request} of "
            f"question and {answer} of answer. Lower dataset.max_new_tokens and seeding.max_completion_length, or "
            f"raise max_context."
        )
    return ctx
