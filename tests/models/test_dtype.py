"""The dtype of the base: measured on the CPU, by a clock that other work does not move."""

import time

import pytest
import torch

from sleep_trl.models import dtype
from sleep_trl.models.dtype import DtypeChoice, choose_dtype, faster_of, measure_cpu


def test_bfloat16_has_to_be_clearly_faster() -> None:
    assert faster_of(100, 124).name == "float32"
    assert faster_of(100, 125).name == "bfloat16"
    assert faster_of(151, 83) == ("float32", "measured on this CPU: float32 151, bfloat16 83 GFLOP/s per core")


def test_the_measurement_is_a_products_speed_and_leaves_the_process_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    measure_cpu.cache_clear()
    start = time.thread_time()
    speeds = measure_cpu()
    took = time.thread_time() - start
    assert all(0.1 < speed < 10_000 for speed in speeds)  # GFLOP/s of one core
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert took >= 2 * dtype.TOKENS * dtype.HIDDEN * dtype.INTERMEDIATE / 1e9 * sum(1 / speed for speed in speeds)
    assert measure_cpu() is speeds  # once in a process


@pytest.mark.parametrize(("seconds", "rounds"), [((1e-3, 2e-3), 4), ((1e-3, 1e-1), 1)])
def test_a_dtype_that_is_emulated_is_given_up_after_one_round(seconds, rounds, monkeypatch) -> None:
    timed = []

    def product(kind: torch.dtype) -> float:
        timed.append(kind)
        return seconds[kind is torch.bfloat16]

    monkeypatch.setattr(dtype, "_time_product", product)
    float32, bfloat16 = measure_cpu.__wrapped__()
    assert len(timed) == 2 * rounds and float32 / bfloat16 == pytest.approx(seconds[1] / seconds[0])


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU decides by what it supports")
def test_auto_follows_the_measurement(monkeypatch) -> None:
    for speeds, name in (((100.0, 450.0), "bfloat16"), ((151.0, 83.0), "float32")):
        monkeypatch.setattr(dtype, "measure_cpu", lambda speeds=speeds: speeds)
        assert choose_dtype("auto").name == name
        assert choose_dtype("auto").dtype is getattr(torch, name)
        assert choose_dtype("float32") == DtypeChoice("float32", "as asked for")
