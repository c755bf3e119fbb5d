"""How long the texts of a run are, and how much of a memory fits the context along with prompt, request and answer."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig
from .prompts import Prompter
from .templates import Template

MIN_WINDOW = 16  # tokens


@dataclass(frozen=True)
class Lengths:
    """The most tokens that the texts of a run have.

    Args:
        teacher (`int`): a prompt with a memory, worked examples included, but without memory, title, sentence, request.
        student (`int`): a prompt without a memory, its title and request.
        title (`int`): the title of a memory. It may come before the memory and before the request.
        sentence (`int`): what is shown of the sentence to ask about.
        request (`int`): a request, such as a question.
        sample (`int`): what the teacher writes.
        rollout (`int`): what the student writes in training.
    """

    teacher: int
    student: int
    title: int
    sentence: int
    request: int
    sample: int
    rollout: int

    @staticmethod
    def of(config: RunConfig, prompter: Prompter, context: int, title: int = 0) -> Lengths:
        """Derive the lengths of a run with prompts of its own templates in a context of `context` tokens."""
        data = config.dataset
        teacher = student = 0
        templates = list(map(Template.load, data.templates))
        for template in templates:
            for prompt in [template.respond] if template.ask is None else [template.respond, template.ask]:
                rendered = prompter(prompt, context="x", request="x", source="memory", sentence=None)[0]
                teacher = max(teacher, len(rendered))
            student = max(student, len(prompter(template.respond, request="x", source="memory", sentence="x")[0]))
        return Lengths(
            teacher=teacher,
            student=student,
            title=title,
            sentence=sentence_size(context) if any(template.is_per_sentence for template in templates) else 0,
            request=max(data.max_new_tokens, config.evaluation.max_new_tokens),
            sample=data.max_new_tokens,
            rollout=config.seeding.max_completion_length,
        )

    @property
    def answer(self) -> int:
        """Tokens that may follow a prompt."""
        return max(self.sample, self.rollout)

    def teacher_prompt(self, window: int) -> int:
        """Return the length of a prompt with a window of `window` tokens."""
        return self.teacher + 2 * self.title + window + self.sentence + self.request

    def largest_window(self, context: int) -> int:
        """Return how many tokens of a memory fit a context of `context` tokens, along with everything else.

        Raises:
            `ValueError`: if fewer than 16 do.
        """
        around = self.teacher_prompt(0) - self.request
        if (size := context - around - self.request - self.answer) < MIN_WINDOW:
            raise ValueError(
                f"A context of {context} tokens leaves {size} for a memory, after {around} for the prompt, "
                f"{self.request} for the question and {self.answer} for the answer. Lower dataset.max_new_tokens and "
                f"seeding.max_completion_length, or raise max_context."
            )
        return size


def sentence_size(context: int) -> int:
    """Return how many tokens of a sentence are shown to the teacher when it is asked about it, with its window."""
    return context // 16
