"""Figures of `dream_farm.py`: how fast a processor multiplies, where time goes, and how far adapters are apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

KERNELS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_scaled_dot_product")
VIEWS = {
    f"aten::{name}"
    for name in ("as_strided", "detach", "expand", "select", "slice", "transpose", "t", "unsqueeze", "view")
}


def product_speed(rows: int, size: int) -> float:
    """Measure floating-point operations per second of a matrix product `(rows, size) x (size, size)`."""
    import torch

    x, weight = torch.randn(rows, size), torch.randn(size, size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        count = max(1, int(1e10 / (2 * rows * size * size)))
        for _ in range(count):
            torch.nn.functional.linear(x, weight)
        seconds.append((time.perf_counter() - start) / count)
    return 2 * rows * size * size / min(seconds)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference between the weights of the dreams that both sides have."""
    pairs = [(one[d][name], other[d][name]) for d in one.keys() & other.keys() for name in one[d]]
    return max(float((a - b).abs().max()) for x, y in pairs for a, b in zip(x, y, strict=True))


def relative_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the length of the difference of the second factors, which begin at zero, in lengths of the factors. One
    weight with a gradient near zero, whose sign AdamW takes from rounding, hardly changes it."""
    pairs = [(one[d][name][1], other[d][name][1]) for d in one.keys() & other.keys() for name in one[d]]
    return float((sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)) ** 0.5)


def shares(work: Callable[[], object]) -> tuple[float, float]:
    """Return the shares of the time of some work in matrix products and attention, and in all tensor operations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    kernels = sum(time for key, time in times.items() if key.startswith(KERNELS))
    operations = sum(time for key, time in times.items() if key.startswith("aten::") and key not in VIEWS)
    return kernels / sum(times.values()), operations / sum(times.values())
