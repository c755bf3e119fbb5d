"""A reward of your own: one function in TRL's form, in any file."""

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
    """Reward a completion that is not longer than the teacher's, with some slack.

    1 up to `slack` tokens more than the reference, then falling in a straight line to 0 at twice
    that length. Rows of self-replay get None, which is TRL's word for "no reward".

    Args:
        completion_ids (`Sequence[Sequence[int]]`):
            The student's tokens.
        reference_ids (`Sequence[Sequence[int] | None]`):
            The teacher's tokens, a column of the data set.
        part (`Sequence[str]`, *optional*):
            What each row is of: "memory", "general" or "earlier", a column of the data set.
        slack (`int`, *optional*, defaults to `4`):
            Tokens that cost nothing; set it with `params`.
        **columns:
            All that TRL passes besides.

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
