"""A custom reward: one function in TRL's form, in any file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def brevity(
    completion_ids: Sequence[Sequence[int]],
    reference_ids: Sequence[Sequence[int] | None],
    part: Sequence[str] | None = None,
    slack: int = 4,
    **columns: Any,
) -> list[float | None]:
    """Reward completions that are not longer than the teacher's, with some slack.

    1 up to `slack` tokens more than the reference, then decreasing linearly to 0 at twice that length. Rows of
    self-replay get None, which for TRL means "no reward".

    Args:
        completion_ids (`Sequence[Sequence[int]]`):
            The student's tokens.
        reference_ids (`Sequence[Sequence[int] | None]`):
            The teacher's tokens, a column of the dataset.
        part (`Sequence[str]`, *optional*):
            What each row is for: "memory", "general" or "earlier", a column of the dataset.
        slack (`int`, *optional*, defaults to `4`):
            Extra tokens without a penalty; set it with `params`.
        **columns:
            Everything else that TRL passes.

    Returns:
        `list[float | None]`: one reward in [0, 1], or None, for each completion.
    """
    rewards: list[float | None] = []
    for row, (completion, reference) in enumerate(zip(completion_ids, reference_ids, strict=True)):
        if reference is None or (part is not None and part[row] != "memory"):
            rewards.append(None)
            continue
        allowed = max(len(reference) + slack, 1)
        excess = len(completion) - allowed
        rewards.append(min(1.0, max(0.0, 1 - excess / allowed)))
    return rewards
