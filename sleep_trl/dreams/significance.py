"""Tests whether a gain is more than chance, from paired scores (ours; the paper takes the bare sign)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import torch

Verdict = Literal["better", "worse", "uncertain"]
Test = Literal["bootstrap", "mcnemar", "sign"]


@dataclass(frozen=True)
class Gain:
    """The mean difference of paired scores, its confidence interval, and its sign if that is certain."""

    mean: float
    low: float
    high: float
    items: int
    verdict: Verdict


def paired_gain(
    before: Sequence[float],
    after: Sequence[float],
    *,
    test: Test = "bootstrap",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Gain:
    """
    Compare scores of the same items before and after.

    Args:
        before (`Sequence[float]`):
            Score of each item before; higher is better.
        after (`Sequence[float]`):
            Score of the same items after.
        test (`str`, *optional*, defaults to `"bootstrap"`):
            When a sign is certain. `"bootstrap"`: the percentile interval of the mean difference excludes 0.
            `"mcnemar"`: the exact two-sided sign test over the items that changed, which is McNemar's test if scores
            are right or wrong; it needs at least six changes at 95 %. `"sign"`: every difference counts, as in the
            paper; a task of two or three questions allows no other test.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of the interval and of the test, in (0, 1).
        resamples (`int`, *optional*, defaults to `2000`):
            Draws of the bootstrap.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `Gain`: with the verdict `"uncertain"` if the sign is not certain, as for fewer than two items.

    Raises:
        `ValueError`: if the scores do not pair up, or there are none.
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            f"{len(before)} scores before and {len(after)} after do not pair up; give the same items, at least one."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    differences = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)  # (items,)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(differences), (resamples, len(differences)), generator=generator)
    tail = (1 - confidence) / 2
    quantiles = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = differences[drawn].mean(1).quantile(quantiles).tolist()
    mean = differences.mean().item()
    if test == "mcnemar":
        certain = sign_test(int((differences > 0).sum()), int((differences < 0).sum())) <= 1 - confidence
    elif test == "sign":
        certain = True
    else:
        certain = len(differences) > 1 and (low > 0 or high < 0)
    verdict: Verdict = "uncertain" if not certain or mean == 0 else "better" if mean > 0 else "worse"
    return Gain(mean, low, high, len(differences), verdict)


def sign_test(ups: int, downs: int) -> float:
    """Return the exact two-sided p-value of `ups` against `downs` under even odds (McNemar's exact test)."""
    changed = ups + downs
    tail = sum(comb(changed, k) for k in range(max(ups, downs), changed + 1)) / 2**changed
    return min(1.0, 2 * tail)
