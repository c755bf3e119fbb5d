"""The dtype of the frozen base: bfloat16 where the hardware computes faster with it, else float32."""

from __future__ import annotations

import time
from functools import cache
from typing import NamedTuple

import torch
from torch.nn.functional import linear

TOKENS, HIDDEN, INTERMEDIATE = 256, 512, 2048  # of the product that is timed, one map of a small MLP
ROUNDS = 4  # each some ten milliseconds on one core; the fastest counts
FASTER = 1.25  # the least speedup for which `auto` gives up float32's precision (ours)
HOPELESS = 4.0  # a CPU without bfloat16 emulates it, a hundred times as slowly: one round is enough


class DtypeChoice(NamedTuple):
    """A dtype, and why a run has it.

    Args:
        name (`str`): `"float32"` or `"bfloat16"`.
        reason (`str`): for the log and the plan.
    """

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.name == "bfloat16" else torch.float32


def choose_dtype(asked: str) -> DtypeChoice:
    """Choose the dtype of the frozen base on this machine.

    Args:
        asked (`str`):
            `"float32"`, `"bfloat16"` or `"auto"`: bfloat16 on GPUs that support it and on CPUs that are measured to
            be at least 1.25 times as fast with it, else float32.
    """
    if asked != "auto":
        return DtypeChoice(asked, "as asked for")
    if torch.accelerator.is_available():
        name = dtype_without_measuring()
        return DtypeChoice(name, f"this GPU has {'' if name == 'bfloat16' else 'no '}bfloat16")
    return faster_of(*measure_cpu())


def dtype_without_measuring() -> str:
    """Return `"bfloat16"` on GPUs that support it, else `"float32"`."""
    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"


def faster_of(float32: float, bfloat16: float) -> DtypeChoice:
    """Choose by the speed of a matrix product in both dtypes, in GFLOP/s."""
    name = "bfloat16" if bfloat16 >= FASTER * float32 else "float32"
    return DtypeChoice(name, f"measured on this CPU: float32 {float32:,.0f}, bfloat16 {bfloat16:,.0f} GFLOP/s per core")


@cache
def measure_cpu() -> tuple[float, float]:
    """Time a matrix product on one core in float32 and in bfloat16, once in a process.

    It is timed by the thread's own clock, so that other work on the machine decides nothing.

    Returns:
        `tuple[float, float]`: GFLOP/s in float32 and in bfloat16.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that all work is on the clock
    try:
        best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
        for _ in range(ROUNDS):
            best = {dtype: min(seconds, _time_product(dtype)) for dtype, seconds in best.items()}
            if best[torch.bfloat16] > HOPELESS * best[torch.float32]:
                break
    finally:
        torch.set_num_threads(threads)
    operations = 2 * TOKENS * HIDDEN * INTERMEDIATE / 1e9
    return operations / best[torch.float32], operations / best[torch.bfloat16]


def _time_product(dtype: torch.dtype) -> float:
    x = torch.full((TOKENS, HIDDEN), 0.5, dtype=dtype)  # drawing them would move the run's random numbers
    weight = torch.full((INTERMEDIATE, HIDDEN), 0.5, dtype=dtype)
    start = time.thread_time()
    with torch.no_grad():
        linear(x, weight)
    return time.thread_time() - start
