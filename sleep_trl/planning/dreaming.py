"""What would stop the dreaming of a night."""

from __future__ import annotations

from importlib.util import find_spec

from ..config import RunConfig
from ..data.prompts import Prompter
from ..data.templates import Template


def check_dream(config: RunConfig, prompter: Prompter, context: int, window: int, questions: int) -> None:
    """Raise for what would stop the dreaming of a night.

    Args:
        config (`RunConfig`):
            The run.
        prompter (`Prompter`):
            Makes the prompts.
        context (`int`):
            Tokens that the model can see.
        window (`int`):
            Tokens of a memory that the teacher sees at once.
        questions (`int`):
            Questions that come with the memories.
    """
    dream = config.dream
    template = Template.load(dream.template)
    if template.ask is not None:
        raise ValueError(
            f"dream.template: {dream.template!r} first asks for a request, and a dream is written at once. Choose "
            f"notes, implications, questions, paraphrase, or a .j2 file without .ask.j2 beside it."
        )
    around = len(prompter(template.respond, context="x", source="memory")[0])
    size = dream.window or window
    if size + around + dream.max_new_tokens > context:
        raise ValueError(
            f"dream: a window of {size} tokens, {around} of prompt and a dream of {dream.max_new_tokens} do not fit "
            f"the context of {context} tokens. Lower --dream.window or --dream.max_new_tokens."
        )
    if dream.workers and find_spec("ray") is None:
        raise ValueError("dream.workers: Ray is not installed: pip install 'sleep-trl[ray]'.")
    if dream.measure == "questions" and not questions:
        raise ValueError("dream.measure: the memories come with no questions. Give them some, or use measure quiz.")
