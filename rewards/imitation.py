"""Learning to Imitate: how close the student comes to the teacher's text (section 3.3, Eq. 3 and 4)."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

from sleep_trl.data.parts import LEARNED
from sleep_trl.rewards.errors import RewardError
from sleep_trl.rewards.judges import Judge, check_judge, load_judge, make_judge
from sleep_trl.rewards.registry import reward


def levenshtein_reward(
    completion_ids: Sequence[Hashable], reference_ids: Sequence[Hashable], z0: float | None = None
) -> float:
    """Return r_abs of Eq. 4: 1 - z / max(|d̂|, |d|) if z <= z_0, else 0.

    z is the Levenshtein distance over tokens.

    Args:
        completion_ids (`Sequence[int]` of length |d̂|):
            The student's tokens, without a final end-of-sequence token.
        reference_ids (`Sequence[int]` of length |d|):
            The teacher's tokens, likewise.
        z0 (`float`, *optional*):
            Largest distance with a reward above 0. 1 or more (or 0): tokens, as in the paper. In (0, 1): a share of
            the longer of the two (ours, since samples differ in length). None: no limit.

    Returns:
        `float`: in [0, 1]. Ours: 1 if both are empty, where the paper's quotient is undefined.

    Raises:
        `ValueError`: if `z0` is negative or not finite.
    """
    from rapidfuzz.distance import Levenshtein

    _check_z0(z0)
    longest = max(len(completion_ids), len(reference_ids))
    if longest == 0:
        return 1.0
    distance = Levenshtein.distance(completion_ids, reference_ids)
    if z0 is not None and distance > (z0 * longest if 0 < z0 < 1 else z0):
        return 0.0
    return 1.0 - distance / longest


def combine(r_sem: float, r_abs: float, gamma: float) -> float:
    """Return r of Eq. 3: γ r_sem + (1-γ) r_abs.

    Args:
        r_sem (`float`):
            1 if a judge finds the meaning the same, else 0.
        r_abs (`float`):
            In [0, 1], from [`levenshtein_reward`].
        gamma (`float`):
            Weight of the judge, in [0, 1].

    Returns:
        `float`: in [0, 1].
    """
    return gamma * r_sem + (1 - gamma) * r_abs


def strip_trailing(ids: Sequence[int], stop_ids: Collection[int]) -> Sequence[int]:
    """Return the tokens without those at the end that are in `stop_ids`."""
    end = len(ids)
    while end and ids[end - 1] in stop_ids:
        end -= 1
    return ids[:end]


@reward("imitation")
class ImitationReward:
    """The imitation reward for TRL: Eq. 3 for the rows of a memory or a dream, None for all others.

    It reads the columns `reference` (the rest of the teacher's sample) and, if present, `reference_ids` (the same as
    tokens; without it, words are compared in place of tokens), `prefix_text` (the text before it, so that a judge sees
    the whole statement) and `part`. Rows of other parts get None: self-replay is trained by the divergence alone. The
    means of both terms are logged as `rewards/imitation/r_sem` and `rewards/imitation/r_abs`.

    Args:
        gamma (`float`, *optional*, defaults to `0.5`):
            Weight of the judge, in [0, 1]. At 0 the judge is not called.
        z0 (`float`, *optional*):
            Largest edit distance with a reward above 0; see [`levenshtein_reward`].
        judge (`Judge`, `str` or `Mapping`, *optional*):
            Decides whether the meaning is the same: a name, `{"name": ..., "params": {...}}`, or any callable with a
            judge's signature. The default is `lexical`, a proxy that needs no model (ours; the paper uses a frozen
            reward model).
        eos_token_ids (`int` or `Collection[int]`, *optional*):
            Tokens that are removed from the end of both sides before they are compared.

    Raises:
        `ValueError`: if `gamma` or `z0` is out of range, or the judge is unknown.
    """

    def __init__(
        self,
        gamma: float = 0.5,
        z0: float | None = None,
        judge: Judge | str | Mapping[str, Any] | None = None,
        eos_token_ids: int | Collection[int] = (),
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; it must be between 0 and 1.")
        _check_z0(z0)
        self.gamma = gamma
        self.z0 = z0
        self.judge = make_judge("lexical" if judge is None else judge)
        listed = [eos_token_ids] if isinstance(eos_token_ids, int) else eos_token_ids
        self.eos_token_ids = frozenset(listed)

    def check(self) -> None:
        """Raise `ValueError` if the judge is used and its model cannot be read."""
        if self.gamma > 0:
            check_judge(self.judge)

    def load(self) -> None:
        """Load the judge's model, if it is used and has one."""
        if self.gamma > 0:
            load_judge(self.judge)

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        reference: Sequence[str | None],
        reference_ids: Sequence[Sequence[int] | None] | None = None,
        part: Sequence[str] | None = None,
        prefix_text: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward in [0, 1] for each completion, or None for rows that are not learned."""
        rows = [i for i in range(len(completions)) if part is None or part[i] in LEARNED]
        rewards: list[float | None] = [None] * len(completions)
        if not rows:
            return rewards
        if reference_ids is None:
            r_abs = [self._compare_words(i, completions[i], reference[i]) for i in rows]
        else:
            r_abs = [self._compare_tokens(i, completion_ids[i], reference_ids[i]) for i in rows]
        r_sem = self._ask_judge(rows, completions, reference, prefix_text)
        for row, semantic, absolute in zip(rows, r_sem, r_abs, strict=True):
            rewards[row] = combine(semantic, absolute, self.gamma)
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric("rewards/imitation/r_abs", sum(r_abs) / len(rows))
            if self.gamma > 0:
                log_metric("rewards/imitation/r_sem", sum(r_sem) / len(rows))
        return rewards

    def _compare_tokens(self, row: int, completion: Sequence[int], reference: Sequence[int] | None) -> float:
        if reference is None:
            raise RewardError(f"sample {row} is about a memory and has no reference_ids")
        return levenshtein_reward(
            strip_trailing(completion, self.eos_token_ids),
            strip_trailing(reference, self.eos_token_ids),
            self.z0,
        )

    def _compare_words(self, row: int, completion: Any, reference: str | None) -> float:
        if reference is None:
            raise RewardError(f"sample {row} is about a memory and has no reference")
        return levenshtein_reward(completion_text(completion).split(), reference.split(), self.z0)

    def _ask_judge(
        self,
        rows: Sequence[int],
        completions: Sequence[Any],
        reference: Sequence[str | None],
        prefix_text: Sequence[str] | None,
    ) -> list[float]:
        if self.gamma == 0:
            return [0.0] * len(rows)
        if missing := [row for row in rows if reference[row] is None]:
            raise RewardError(f"sample {missing[0]} is about a memory and has no reference")
        candidates = [completion_text(completions[row]) for row in rows]
        references = [str(reference[row]) for row in rows]
        contexts = None if prefix_text is None else [prefix_text[row] or "" for row in rows]
        verdicts = self.judge(candidates, references, contexts)
        if len(verdicts) != len(rows):
            raise RewardError(f"the judge gave {len(verdicts)} verdicts for {len(rows)} pairs")
        if wrong := [verdict for verdict in verdicts if verdict not in (0, 1)]:
            kind = wrong[0] if isinstance(wrong[0], int | float) else type(wrong[0]).__name__
            raise RewardError(f"the judge gave {kind}; a verdict is 0 or 1")
        return verdicts


def imitation_reward(
    completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], reference: Sequence[str | None], **columns: Any
) -> list[float | None]:
    """The imitation reward with its defaults, for any trainer of TRL: `reward_funcs=imitation_reward`, or `trl grpo
    --reward_funcs sleep_trl.rewards.imitation_reward`. The data set has a column `reference`, and may have others that
    [`ImitationReward`] reads.

    Returns:
        `list[float | None]`: one reward in [0, 1] for each completion.
    """
    return _with_defaults()(completions, completion_ids, reference, **columns)


@cache
def _with_defaults() -> ImitationReward:
    return ImitationReward()


def completion_text(completion: Any) -> str:
    """Return the text of a completion: TRL gives a string, or messages for a conversation."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] or "" for message in completion)


def _check_z0(z0: float | None) -> None:
    if z0 is not None and not 0 <= z0 < float("inf"):
        raise ValueError(f"z0 is {z0}; it must be a number of tokens, a share between 0 and 1, or nothing.")
