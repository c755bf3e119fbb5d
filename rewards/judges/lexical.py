"""The lexical judge: the same words, after normalization. A proxy for the same meaning."""

from __future__ import annotations

from typing import Literal, get_args

from sleep_trl.evaluation.metrics import contains, exact_match, f1
from sleep_trl.rewards.judges.registry import judge

Mode = Literal["exact", "contains", "f1"]


@judge("lexical")
class LexicalJudge:
    """Judges two texts the same if their words are: a PROXY for meaning that needs no model.

    It does not recognize that "two" and "2" mean the same. Ours, and the default: the paper's judge is a frozen reward
    model. Contexts are ignored, since words that both sides share carry no information.

    Args:
        mode (`str`, *optional*, defaults to `"exact"`):
            `"exact"`: equal after normalization. `"contains"`: the candidate contains the reference, with any text
            around it. `"f1"`: the words overlap by at least `threshold`, which tolerates one wrong word in a long
            sentence, even if that is the one that matters.
        threshold (`float`, *optional*, defaults to `0.8`):
            Minimum F1 for `"f1"`, in (0, 1].

    Raises:
        `ValueError`: if the mode is unknown or the threshold is out of range.
    """

    def __init__(self, mode: Mode = "exact", threshold: float = 0.8) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}; allowed: {', '.join(get_args(Mode))}.")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1.")
        self.mode = mode
        self.threshold = threshold

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None = None) -> list[float]:
        """Return 1.0 for each pair with the same words, else 0.0."""
        pairs = zip(candidates, references, strict=True)
        return [float(self._is_same(candidate, reference)) for candidate, reference in pairs]

    def _is_same(self, candidate: str, reference: str) -> bool:
        if self.mode == "exact":
            return exact_match(candidate, reference)
        if self.mode == "contains":
            return contains(candidate, reference)
        return f1(candidate, reference) >= self.threshold
