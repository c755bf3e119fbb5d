"""A guard around any reward function: length, types, values and run time are checked at each call.

Messages never contain text of the batch, since it is made of a user's memories.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from numbers import Real
from typing import Any, Literal

from sleep_trl.rewards.errors import RewardError, describe_error
from sleep_trl.rewards.messages import as_messages, wanted_as_messages
from sleep_trl.rewards.scored_rows import learned_rows, only, scored_rows, spread

RewardFunc = Callable[..., Any]
"""TRL's form: `f(prompts, completions, completion_ids, **columns) -> list[float | None]`."""

OnError = Literal["raise", "abstain"]

MOST_LEFT_BEHIND = 4  # threads of calls that took too long
LARGEST = 3.4028234663852886e38  # of float32, in which TRL holds rewards

logger = logging.getLogger(__name__)

_left_behind: list[threading.Thread] = []


class GuardedReward:
    """A synchronous reward function, checked at each call, in TRL's form.

    Args:
        func (`RewardFunc`):
            The reward function. If it has a method `load()`, that is called before the clock starts.
        name (`str`, *optional*):
            The name that TRL logs. Default: the function's own.
        timeout_s (`float`, *optional*):
            Time limit of a call in seconds. The function then runs in a thread. Python cannot stop a thread: after the
            deadline it keeps running as a daemon until it returns.
        on_error (`str`, *optional*, defaults to `"raise"`):
            `"raise"` raises a [`RewardError`]. `"abstain"` returns None, for the offending samples if single values
            are wrong, otherwise for the whole call. The first failure is a warning, and the share of replaced samples
            is logged as `rewards/<name>/abstained`.

    The share of completions that got a value, of those not for self-replay, is logged as `rewards/<name>/scored`.

    Raises:
        `RewardError`: at a call, with the function, the first offending sample and its value. The original exception is
            its `__context__`, which is not printed since it may quote the batch.
        `ValueError`: at a call, if the dataset has a column with the name of one of the parameters.
    """

    def __init__(
        self,
        func: RewardFunc,
        name: str | None = None,
        timeout_s: float | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in ("raise", "abstain"):
            raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'abstain'.")
        self.func = func
        self.timeout_s = timeout_s
        self.on_error = on_error
        self.__name__ = name or callable_name(func)
        self.wanted_as_messages = wanted_as_messages(unwrap(func))
        self.has_failed = False  # and abstained

    def check(self) -> None:
        """Raise `ValueError` if what `load()` needs cannot be read, as far as this shows without loading weights."""
        check = getattr(unwrap(self.func), "check", None)
        if check is not None:
            check()

    def load(self) -> None:
        """Load what the reward needs, such as a judge's model. Calling it again does nothing.

        Call it before creating the trainer's arguments: under ZeRO-3, a model loaded later is sharded like the policy.
        """
        load = getattr(unwrap(self.func), "load", None)
        if load is not None:
            try:
                load()
            except SystemExit as error:
                raise RewardError(f"Reward {self.__name__!r} ended the program as it was loaded: {error}.") from None

    def __call__(self, **call: Any) -> list[float | None]:
        """Call the function with TRL's keywords and return one checked reward for each prompt."""
        scored, whole = self._prepare(call)
        try:
            self._require_columns(scored)
            rewards = self._run(scored) if scored["prompts"] else []
        except (Exception, SystemExit) as error:
            return whole(self._fail(error, scored))
        return whole(self._check(rewards, scored))

    def _run(self, call: Mapping[str, Any]) -> Any:
        if self.timeout_s is None:
            return self.func(**call)
        return call_within(partial(self.func, **call), self.timeout_s)

    def _prepare(self, call: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., list[float | None]]]:
        """Return the call for the rows to score, and a function from their rewards to those of all rows."""
        self.load()
        fixed = self.func.keywords if isinstance(self.func, partial) else {}
        if clash := sorted(fixed.keys() & call.keys()):
            raise ValueError(
                f"Reward {self.__name__!r}: {', '.join(clash)} is both a parameter of the reward "
                f"and a column of the dataset (or a name of TRL's); rename one."
            )
        call |= {name: as_messages(call[name], name) for name in self.wanted_as_messages if name in call}
        rows = scored_rows(call, self.needed)
        return only(call, rows), partial(spread, rows=rows, count=len(call["prompts"]))

    @cached_property
    def needed(self) -> list[str]:
        """The names of required arguments that params do not provide."""
        fixed = self.func.keywords if isinstance(self.func, partial) else {}
        return [
            parameter.name
            for parameter in inspect.signature(unwrap(self.func)).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in fixed
        ]

    def missing(self, columns: Collection[str]) -> list[str]:
        """Return the names of required arguments that neither the columns nor params provide."""
        return [name for name in self.needed if name not in columns]

    def _require_columns(self, call: Mapping[str, Any]) -> None:
        if missing := self.missing(call):
            raise RewardError(
                f"it needs {', '.join(missing)}, which is neither a column of the dataset nor "
                f"set in params; there are: {', '.join(sorted(call))}"
            )

    def _check(self, rewards: Any, call: Mapping[str, Any]) -> list[float | None]:
        try:
            values, faults = check_rewards(rewards, len(call["prompts"]))
        except RewardError as error:
            return self._fail(error, call)
        if not faults:
            self._count(0, values, call)
            return values
        index, what = faults[0]
        message = f"sample {index} of {len(values)} got {what}"
        if len(faults) > 1:
            message += f", and {len(faults) - 1} more samples are wrong"
        if self.on_error == "raise":
            raise RewardError(f"Reward {self.__name__!r} failed: {message}.")
        return self._abstain(message, len(faults), values, call)

    def _fail(self, error: Exception | SystemExit, call: Mapping[str, Any]) -> list[float | None]:
        message = describe_error(error, call)
        if self.on_error == "raise":
            raise RewardError(f"Reward {self.__name__!r} failed: {message}.") from None
        samples = len(call["prompts"])
        return self._abstain(message, samples, [None] * samples, call)

    def _abstain(
        self, message: str, failed: int, values: list[float | None], call: Mapping[str, Any]
    ) -> list[float | None]:
        level, name = logging.DEBUG if self.has_failed else logging.WARNING, self.__name__
        logger.log(
            level,
            "Reward %r failed: %s. %d of %d rewards are None. Further failures are not printed but counted, as "
            "rewards/%s/abstained.",
            name,
            message,
            failed,
            len(values),
            name,
        )
        self.has_failed = True
        self._count(failed, values, call)
        return values

    def _count(self, failed: int, values: list[float | None], call: Mapping[str, Any]) -> None:
        if (log_metric := call.get("log_metric")) is None:
            return
        if self.on_error == "abstain":
            log_metric(f"rewards/{self.__name__}/abstained", failed / max(len(values), 1))
        if learned := learned_rows(call):
            scored = sum(values[row] is not None for row in learned)
            log_metric(f"rewards/{self.__name__}/scored", scored / len(learned))


class AsyncGuardedReward(GuardedReward):
    """An asynchronous reward function, checked at each call; see [`GuardedReward`].

    At the deadline the function is cancelled, which takes effect where it awaits. A function that blocks the event loop
    cannot be stopped.
    """

    async def __call__(self, **call: Any) -> list[float | None]:  # type: ignore[override]
        """Await the function with TRL's keywords and return one checked reward for each prompt."""
        scored, whole = self._prepare(call)
        try:
            self._require_columns(scored)
            rewards = await self._await(scored) if scored["prompts"] else []
        except (Exception, SystemExit) as error:
            return whole(self._fail(error, scored))
        return whole(self._check(rewards, scored))

    async def _await(self, call: Mapping[str, Any]) -> Any:
        if self.timeout_s is None:
            return await self._outcome(call)
        start = time.monotonic()
        try:
            return await asyncio.wait_for(self._outcome(call), self.timeout_s)
        except TimeoutError:
            if time.monotonic() - start < self.timeout_s:
                raise  # the function's own
            raise RewardError(f"it took longer than timeout_s ({self.timeout_s:g} s)") from None

    async def _outcome(self, call: Mapping[str, Any]) -> Any:
        try:
            return await self.func(**call)
        except SystemExit as error:  # in a task, it would end the event loop
            raise RewardError(describe_error(error, call)) from None


def guard(
    func: RewardFunc,
    name: str | None = None,
    timeout_s: float | None = None,
    on_error: OnError = "raise",
) -> GuardedReward:
    """Wrap a reward function, sync or async, to check each call; see [`GuardedReward`]."""
    kind = AsyncGuardedReward if is_async(func) else GuardedReward
    return kind(func, name=name, timeout_s=timeout_s, on_error=on_error)


def check_rewards(rewards: Any, expected: int) -> tuple[list[float | None], list[tuple[int, str]]]:
    """Check what a reward function returned, without quoting any text.

    Args:
        rewards (`Any`):
            What it returned: a list, or a tensor or array of one dimension.
        expected (`int`):
            Number of samples.

    Returns:
        `tuple[list[float | None], list[tuple[int, str]]]`: the rewards as floats, with None in place of NaN and wrong
        values, and the index and a description of each wrong value.

    Raises:
        `RewardError`: if it is not a list of the expected length.
    """
    if getattr(rewards, "ndim", None) == 1:
        rewards = rewards.tolist()  # of a tensor or an array
    if not isinstance(rewards, list | tuple):
        kind = type(rewards).__name__
        raise RewardError(f"it returned a {kind}; it must return a list of float or None")
    if len(rewards) != expected:
        raise RewardError(f"it returned {len(rewards)} rewards for {expected} completions; it must be one each")
    values, faults = [], []
    for index, reward in enumerate(rewards):
        value, fault = _read(reward)
        values.append(value)
        if fault is not None:
            faults.append((index, fault))
    return values, faults


def _read(reward: Any) -> tuple[float | None, str | None]:
    """Return a reward as a float, or what is wrong with it."""
    if reward is None:
        return None, None
    if getattr(reward, "ndim", None) == 0 and hasattr(reward, "item"):  # of numpy or torch
        reward = reward.item()
    if not isinstance(reward, Real):
        return None, f"a {type(reward).__name__}, not a float or None"
    try:
        value = float(reward)
    except OverflowError:
        return None, "an integer beyond the range of float32"
    if math.isnan(value):
        return None, None  # no reward, as in TRL
    if not math.isfinite(value):
        return None, f"{value}; return None to give no reward"
    if abs(value) > LARGEST:
        return None, f"{value:g}, beyond the range of float32"
    return value, None


def call_within(func: Callable[[], Any], timeout_s: float) -> Any:
    """Call a function in a daemon thread and stop waiting for it after a time.

    Args:
        func (`Callable[[], Any]`):
            The function.
        timeout_s (`float`):
            Seconds to wait.

    Returns:
        `Any`: what it returned.

    Raises:
        `RewardError`: at the deadline. The thread keeps running, since Python cannot stop it; if four of them do, no
            further one is started.
        `BaseException`: whatever the function raised.
    """
    _left_behind[:] = [thread for thread in _left_behind if thread.is_alive()]
    if len(_left_behind) >= MOST_LEFT_BEHIND:
        raise RewardError(f"{len(_left_behind)} earlier calls took longer than timeout_s and are still running")
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = func()
        except BaseException as error:  # raised again in the thread that waits
            outcome["error"] = error

    thread = threading.Thread(target=work, name="sleep-trl-reward", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        _left_behind.append(thread)
        raise RewardError(f"it took longer than timeout_s ({timeout_s:g} s)")
    return outcome["value"]


def unwrap(func: RewardFunc) -> RewardFunc:
    """Return the function behind a `functools.partial`."""
    while isinstance(func, partial):
        func = func.func
    return func


def callable_name(func: RewardFunc) -> str:
    """Return the name that TRL would log for a function, a partial or a callable object."""
    func = unwrap(func)
    return getattr(func, "__name__", type(func).__name__)


def is_async(func: RewardFunc) -> bool:
    """Return whether a call returns a coroutine, as TRL's `is_async_callable` does."""
    func = unwrap(func)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(
        getattr(func, "__call__", None)  # noqa: B004
    )
