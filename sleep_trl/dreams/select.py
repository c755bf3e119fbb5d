"""Which dreams are worth scoring: the best by a score, and a few at random (method 3.4, step 2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from transformers import PreTrainedModel

from ..config import DreamConfig
from .gradients import Text, gradient_scores

DEFAULTS = DreamConfig()
Rule = Literal["gradient_norm", "gradient_alignment", "random", "all"]


class Score(Protocol):
    """Gives each dream a number; higher is better."""

    def __call__(
        self, model: PreTrainedModel, dreams: Sequence[Text], reference: dict[str, torch.Tensor] | None
    ) -> torch.Tensor | None: ...


def _norm(model: PreTrainedModel, dreams: Sequence[Text], reference: object) -> torch.Tensor:
    return gradient_scores(model, dreams).norm


def _alignment(
    model: PreTrainedModel, dreams: Sequence[Text], reference: dict[str, torch.Tensor] | None
) -> torch.Tensor | None:
    if reference is None:
        raise ValueError(
            "selection 'gradient_alignment' compares dreams with the memories just consolidated, and no reference "
            "gradient was given. Give one, or select by 'gradient_norm'."
        )
    return gradient_scores(model, dreams, reference).alignment


def _nothing(model: PreTrainedModel, dreams: Sequence[Text], reference: object) -> None:
    return None


RULES: dict[Rule, Score] = {
    "gradient_norm": _norm,
    "gradient_alignment": _alignment,
    "random": _nothing,
    "all": _nothing,
}


@dataclass(frozen=True)
class Selection:
    """How dreams are selected among those of one task.

    Args:
        rule (`str`, *optional*, defaults to `"gradient_norm"`):
            What dreams are ranked by: `"gradient_norm"`, or `"gradient_alignment"` with the memories' gradient.
            Controls: `"random"` draws all of them at random, and `"all"` keeps every dream. Ours: the paper says that
            the gradient scores a dream, not how.
        top_k (`int`, *optional*, defaults to `4`):
            Dreams with the highest scores to keep of each task.
        random_k (`int`, *optional*, defaults to `1`):
            Dreams to draw at random among the others (the paper's b).
    """

    rule: Rule = DEFAULTS.selection
    top_k: int = DEFAULTS.top_k
    random_k: int = DEFAULTS.random_k

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"selection rule must be one of {', '.join(RULES)}, got {self.rule!r}.")
        if self.top_k < 0 or self.random_k < 0 or self.top_k + self.random_k == 0:
            raise ValueError(
                f"top_k and random_k must not be negative, and one of them must be positive; got {self.top_k} "
                f"and {self.random_k}."
            )


@dataclass(frozen=True)
class Selected:
    """The outcome of a selection, in the order of the dreams."""

    is_kept: list[bool]
    reasons: list[str]  # "top", "random", "all", or "" if not kept
    scores: list[float | None]


def select(
    dreams: Sequence[Text],
    tasks: Sequence[str],
    selection: Selection,
    model: PreTrainedModel,
    reference: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Selected:
    """
    Select dreams, task by task.

    Args:
        dreams (`Sequence[Text]`):
            The dreams.
        tasks (`Sequence[str]`):
            The task of each dream.
        selection (`Selection`):
            How many dreams, and by which rule.
        model (`PreTrainedModel`):
            The model whose gradients are computed.
        reference (`dict[str, torch.Tensor]`, *optional*):
            Gradient of the memories, see [`sleep_trl.dreams.gradients.reference_gradient`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random draw. The draw of a task does not depend on the other tasks.

    Returns:
        `Selected`: whether each is kept, why, and its score.

    Raises:
        `ValueError`: if the rule needs a reference that was not given.
    """
    values = RULES[selection.rule](model, dreams, reference)
    scores: list[float | None] = [None] * len(dreams) if values is None else values.tolist()
    reasons = [""] * len(dreams)
    for task in dict.fromkeys(tasks):
        rows = [i for i, name in enumerate(tasks) if name == task]
        if selection.rule == "all":
            chosen = dict.fromkeys(rows, "all")
        else:
            ranked = [] if values is None else sorted(rows, key=lambda i: (-float(values[i]), i))[: selection.top_k]
            places = selection.random_k + (selection.top_k if values is None else 0)
            others = [i for i in rows if i not in ranked]
            drawn = random.Random(f"{seed} {task}").sample(others, min(places, len(others)))
            chosen = dict.fromkeys(ranked, "top") | dict.fromkeys(drawn, "random")
        for i, reason in chosen.items():
            reasons[i] = reason
    return Selected([bool(reason) for reason in reasons], reasons, scores)
