"""Rehearsal rewards: what a dream is worth, by its effect on the task and by its text (section 3.4, Eq. 5).

The first two read columns that `DreamingTrainer` adds after dreams are tried out; the others read only the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sleep_trl.rewards.errors import RewardError
from sleep_trl.rewards.imitation import completion_text
from sleep_trl.rewards.judges import Judge, check_judge, load_judge, make_judge
from sleep_trl.rewards.registry import reward

Rewards = list[float | None]
Column = Sequence[Any]
GRAM = 3  # words
WORD = re.compile(r"\w+")


@reward("improvement")
def improvement(reward: Literal["binary", "gain"] = "binary") -> Callable[..., Rewards]:
    """Reward a dream that improved its task (Eq. 5).

    A dream abstains if the sign of its gain is uncertain (ours), or if it was not tried out.

    Args:
        reward (`str`, *optional*, defaults to `"binary"`):
            `"binary"`: 1 or 0, as in the paper. `"gain"`: the mean gain, in the unit of the measure.

    Raises:
        `ValueError`: if `reward` is neither.
    """
    if reward not in ("binary", "gain"):
        raise ValueError(f"reward is {reward!r}; it must be 'binary' or 'gain'.")

    def improved(trial_reward: Column, trial_gain: Column, **columns: Any) -> Rewards:
        pairs = zip(trial_reward, trial_gain, strict=True)
        return [None if value is None else float(value if reward == "binary" else gain) for value, gain in pairs]

    return improved


@reward("quiz_gain")
def quiz_gain(smallest: float = 0.0) -> Callable[..., Rewards]:
    """Reward a dream by its mean gain, certain or not: a softer signal than `improvement`, and a noisier one (ours).

    Args:
        smallest (`float`, *optional*, defaults to `0.0`):
            Gains between `-smallest` and `smallest` count as 0.
    """

    def gained(trial_gain: Column, **columns: Any) -> Rewards:
        return [None if gain is None else 0.0 if abs(gain) < smallest else float(gain) for gain in trial_gain]

    return gained


@reward("novelty")
def novelty() -> Callable[..., Rewards]:
    """Reward text that occurs neither in the context nor in another dream about it (ours).

    The reward is 1 minus the share of the dream's three-word sequences that occur in the context, or in the most
    similar other dream, whichever is larger. A dream of fewer than three words gets 0.
    """

    def new(completions: Sequence[Any], task_id: Column, context: Column, **columns: Any) -> Rewards:
        grams = [_grams(completion_text(completion)) for completion in completions]
        read = {text: _grams(text) for text in set(context)}
        values: Rewards = []
        for i, own in enumerate(grams):
            others = [g for j, g in enumerate(grams) if j != i and task_id[j] == task_id[i]]
            known = max((len(own & other) for other in (read[context[i]], *others)), default=0)
            values.append(1.0 - known / len(own) if own else 0.0)
        return values

    return new


@reward("faithfulness")
class Faithfulness:
    """Reward dreams that agree with their context (ours).

    Without a judge, the reward is the probability that the teacher assigns to the dream's tokens behind a prompt that
    contains the context (geometric mean). With a judge, it is the judge's verdict.

    Args:
        judge (`Judge`, `str` or `Mapping`, *optional*):
            Decides instead of the teacher, see [`sleep_trl.rewards.judges`]: an entailment `classifier`, or an `lm`. It
            compares the dream with the context. `lexical` compares answers and is not suitable here.
    """

    def __init__(self, judge: Judge | str | Mapping[str, Any] | None = None) -> None:
        self.judge = None if judge is None else make_judge(judge)

    def check(self) -> None:
        """Raise `ValueError` if there is a judge whose model cannot be read."""
        check_judge(self.judge)

    def load(self) -> None:
        """Load the judge's model, if it has one."""
        load_judge(self.judge)

    def __call__(
        self, completions: Sequence[Any], context: Column, teacher_probability: Column | None = None, **columns: Any
    ) -> Rewards:
        if self.judge is None:
            if teacher_probability is None:
                raise RewardError(
                    "Reward 'faithfulness' without a judge reads the column teacher_probability, which "
                    "DreamingTrainer adds. With another trainer, give it a judge in params."
                )
            return list(teacher_probability)
        texts = [completion_text(completion) for completion in completions]
        return [float(verdict) for verdict in self.judge(texts, list(context), None)]


@reward("format")
def format_(pattern: str) -> Callable[..., Rewards]:
    """Reward completions whose non-empty lines all match a pattern (ours): 1, or 0.

    Args:
        pattern (`str`):
            A regular expression that must match a whole line, such as `Question: .+ Answer: .+`.

    Raises:
        `ValueError`: if it is not a regular expression.
    """
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}.") from None

    def formed(completions: Sequence[Any], **columns: Any) -> Rewards:
        texts = [completion_text(completion) for completion in completions]
        lines = [[line.strip() for line in text.splitlines() if line.strip()] for text in texts]
        return [float(bool(rows) and all(form.fullmatch(row) for row in rows)) for rows in lines]

    return formed


@reward("length")
def length(shortest: int, longest: int) -> Callable[..., Rewards]:
    """Reward completions of a given length (ours): 1 within the bounds, decreasing proportionally outside.

    Args:
        shortest (`int`):
            Fewest tokens, an end-of-sequence token included.
        longest (`int`):
            Most tokens.

    Raises:
        `ValueError`: if the bounds are not `1 <= shortest <= longest`.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"shortest and longest are {shortest} and {longest}; need 1 <= shortest <= longest.")

    def sized(completion_ids: Sequence[Sequence[int]], **columns: Any) -> Rewards:
        return [min(1.0, len(ids) / shortest, longest / max(1, len(ids))) for ids in completion_ids]

    return sized


def _grams(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.casefold())
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}
