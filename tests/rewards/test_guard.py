"""The guard: what it accepts, what it rejects, and what its messages never contain."""

import asyncio
import functools
import logging
import math
import sys
import threading
import time

import numpy as np
import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from sleep_trl.rewards import RewardError, guard, resolve

SECRET = "Mira's cat is called Tolu"
CALL = {"prompts": [SECRET] * 3, "completions": [SECRET] * 3, "completion_ids": [[1]] * 3}


def returning(value, asynchronous=False):
    """Make a reward function that returns a value."""

    def scored(completions, **columns):
        return value

    async def scored_async(completions, **columns):
        return value

    return scored_async if asynchronous else scored


def run(reward, **extra):
    """Call a guarded reward as TRL does."""
    result = reward(**CALL, **extra)
    return asyncio.run(result) if is_async_callable(reward) else result


BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@BOTH
def test_right_rewards_pass(asynchronous) -> None:
    given = [1, None, np.float32(0.5)]
    assert run(guard(returning(given, asynchronous))) == [1.0, None, 0.5]
    not_scored = [math.nan, np.float64("nan"), torch.tensor(float("nan"))]
    assert run(guard(returning(not_scored, asynchronous))) == [None] * 3  # as in TRL
    for array in (np.array([0.5, np.nan, 1.0]), torch.tensor([0.5, float("nan"), 1.0], dtype=torch.bfloat16)):
        assert run(guard(returning(array, asynchronous))) == [0.5, None, 1.0]
    others = (True, torch.tensor(0.25), -2.5)
    assert run(guard(returning(others, asynchronous), timeout_s=5)) == [1.0, 0.25, -2.5]


@BOTH
def test_trl_sees_name_and_kind(asynchronous) -> None:
    func = returning([0.0] * 3, asynchronous)
    assert get_callable_name(guard(func)) == func.__name__
    assert get_callable_name(guard(functools.partial(func, slack=1))) == func.__name__
    assert get_callable_name(guard(func, name="other")) == "other"
    assert is_async_callable(guard(func)) is asynchronous


@BOTH
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "returned 2 rewards for 3 completions"),
        ("abc", "returned a str"),
        (1.0, "returned a float"),
        (np.zeros((3, 1)), "returned a ndarray"),
        (torch.zeros(2), "returned 2 rewards for 3 completions"),
    ],
)
def test_wrong_form(value, message, asynchronous) -> None:
    func = returning(value, asynchronous)
    with pytest.raises(RewardError, match=f"Reward '{func.__name__}' failed: it {message}"):
        run(guard(func))
    assert run(guard(func, on_error="abstain")) == [None] * 3


@BOTH
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (1e39, "beyond the range of float32"),
        (10**400, "beyond the range of float32"),
        (SECRET, "a str, not a float"),
        ([1.0], "a list, not a float"),
        (1j, "a complex, not a float"),
    ],
)
def test_wrong_value_is_named_and_replaced_alone(value, message, asynchronous, caplog) -> None:
    func = returning([0.5, value, value], asynchronous)
    with pytest.raises(RewardError, match=message) as raised:
        run(guard(func))
    assert "sample 1 of 3" in str(raised.value)
    assert SECRET not in str(raised.value)

    logged: dict[str, float] = {}
    reward = guard(func, on_error="abstain")
    assert run(reward, log_metric=logged.__setitem__) == [0.5, None, None]
    assert logged == {
        f"rewards/{func.__name__}/abstained": pytest.approx(2 / 3),
        f"rewards/{func.__name__}/scored": pytest.approx(1 / 3),
    }
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "2 of 3 rewards are None" in record.getMessage()
    assert SECRET not in caplog.text


def raising(completions, **columns):
    raise KeyError(completions[0])


async def raising_async(completions, **columns):
    raise KeyError(completions[0])


@pytest.mark.parametrize("func", [raising, raising_async])
@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_exception_is_placed_but_not_quoted(func, timeout_s, caplog) -> None:
    with pytest.raises(RewardError, match=r"it raised KeyError at .*test_guard\.py:\d+") as raised:
        run(guard(func, timeout_s=timeout_s))
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__
    assert isinstance(raised.value.__context__, KeyError)

    logged: dict[str, float] = {}
    reward = guard(func, timeout_s=timeout_s, on_error="abstain")
    assert run(reward, log_metric=logged.__setitem__) == [None] * 3
    name = reward.__name__
    assert logged == {f"rewards/{name}/abstained": 1.0, f"rewards/{name}/scored": 0.0}
    assert len(caplog.records) == 1
    assert SECRET not in caplog.text


def test_own_reward_error_is_quoted() -> None:
    def explained(completions, **columns):
        raise RewardError("the column answer holds no number")

    with pytest.raises(RewardError, match=r"'explained' failed: the column answer holds no number\."):
        run(guard(explained))


@pytest.mark.parametrize("on_error", ["raise", "abstain"])
@BOTH
def test_slow_reward_is_left_behind(asynchronous, on_error) -> None:
    release = threading.Event()

    def slow(completions, **columns):
        release.wait(20)
        return [1.0] * 3

    async def slow_async(completions, **columns):
        await asyncio.sleep(20)
        return [1.0] * 3

    func = slow_async if asynchronous else slow
    reward = guard(func, timeout_s=0.1, on_error=on_error)
    start = time.monotonic()
    if on_error == "raise":
        with pytest.raises(RewardError, match=r"longer than timeout_s \(0\.1 s\)"):
            run(reward)
    else:
        assert run(reward) == [None] * 3
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_own_timeout_error_is_not_the_deadline(timeout_s) -> None:
    async def refused(completions, **columns):
        raise TimeoutError(SECRET)

    with pytest.raises(RewardError, match="raised TimeoutError at"):
        run(guard(refused, timeout_s=timeout_s))


@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_keyboard_interrupt_passes(timeout_s) -> None:
    def interrupted(completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(guard(interrupted, timeout_s=timeout_s, on_error="abstain"))


def test_abstaining_is_counted_also_when_nothing_fails() -> None:
    logged: dict[str, float] = {}
    func = returning([None, 1.0, 1.0])
    run(guard(func, on_error="abstain"), log_metric=logged.__setitem__)
    scored = {"rewards/scored/scored": pytest.approx(2 / 3)}
    assert logged == {"rewards/scored/abstained": 0.0} | scored  # a None returned by the reward is not a failure
    logged.clear()
    run(guard(func), log_metric=logged.__setitem__)
    assert logged == scored


def test_self_replay_does_not_count_as_without_a_value() -> None:
    logged: dict[str, float] = {}
    reward = guard(returning([None, 1.0, None]))
    run(reward, part=["general", "memory", "earlier"], log_metric=logged.__setitem__)
    assert logged == {"rewards/scored/scored": 1.0}
    logged.clear()
    run(reward, part=["general"] * 3, log_metric=logged.__setitem__)
    assert logged == {}


@BOTH
def test_only_the_first_failure_is_printed(asynchronous, caplog) -> None:
    reward = guard(returning("wrong", asynchronous), on_error="abstain")
    for _ in range(3):
        run(reward)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "3 of 3 rewards are None" in record.getMessage() and "rewards/scored" in record.getMessage()


def test_parameter_with_the_name_of_a_column() -> None:
    def scored(completions, answer="x", **columns):
        return [1.0] * 3

    reward = guard(functools.partial(scored, answer="y"), on_error="abstain")
    assert run(reward) == [1.0] * 3
    with pytest.raises(ValueError, match="answer is both a parameter"):
        run(reward, answer=["z"] * 3)


def test_missing_column_is_named() -> None:
    def scored(completions, answer, **columns):
        return [1.0] * 3

    with pytest.raises(RewardError, match=r"needs answer, .*there are: completion_ids, completions"):
        run(guard(scored))


def test_load_comes_before_the_clock_and_is_not_forgiven() -> None:
    class Loading:
        def __init__(self, error=None):
            self.error = error

        def load(self):
            time.sleep(0.3)
            if self.error:
                raise self.error

        def __call__(self, completions, **columns):
            return [1.0] * 3

    assert run(guard(Loading(), timeout_s=0.2)) == [1.0] * 3
    with pytest.raises(OSError, match="no such model"):
        run(guard(Loading(OSError("no such model")), on_error="abstain"))


def test_on_error_must_be_known() -> None:
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        guard(raising, on_error="ignore")


@pytest.mark.parametrize("timeout_s", [None, 5.0])
@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_reward_that_ends_the_program_is_an_error(timeout_s, is_awaited) -> None:
    def leaving(completions, **columns):
        sys.exit(0)

    async def leaving_later(completions, **columns):
        sys.exit(0)

    func = guard(leaving_later if is_awaited else leaving, timeout_s=timeout_s)
    call = {"prompts": ["a"], "completions": ["b"], "completion_ids": [[1]]}
    with pytest.raises(RewardError, match=r"it raised SystemExit at .*test_guard.py:\d+ in leaving"):
        asyncio.run(func(**call)) if is_awaited else func(**call)


def test_a_reward_that_ends_the_program_as_it_is_made_or_loaded_is_an_error(tmp_path) -> None:
    path = tmp_path / "leaving.py"
    path.write_text(
        "import sys\nfrom collections.abc import Callable\ndef make(x=1) -> Callable:\n    sys.exit('no GPU')\n"
    )
    with pytest.raises(ValueError, match="ended the program as it was made: no GPU"):
        resolve(f"{path}:make")

    class Loading:
        def load(self):
            sys.exit(3)

        def __call__(self, completions, **columns):
            return [1.0] * len(completions)

    with pytest.raises(RewardError, match="ended the program as it was loaded: 3"):
        guard(Loading()).load()


def test_threads_that_are_left_behind_are_few(monkeypatch) -> None:
    ending, started = threading.Event(), []
    monkeypatch.setattr(sys.modules["sleep_trl.rewards.guard"], "_left_behind", [])

    def hanging(completions, **columns):
        started.append(1)
        ending.wait(60)
        return [1.0] * len(completions)

    reward = guard(hanging, timeout_s=0.05, on_error="abstain")
    call = {"prompts": ["a"], "completions": ["b"], "completion_ids": [[1]]}
    assert [reward(**call) for _ in range(7)] == [[None]] * 7 and len(started) == 4
    with pytest.raises(RewardError, match="4 earlier calls took longer than timeout_s and are still running"):
        guard(hanging, timeout_s=0.05)(**call)
    ending.set()
    time.sleep(0.2)
    assert guard(lambda completions, **columns: [2.0], timeout_s=5)(**call) == [2.0]
