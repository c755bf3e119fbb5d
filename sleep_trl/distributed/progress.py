"""Progress of a night: a bar with the remaining time for each phase, and a line when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import PartialState
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config.console import PlainConsole
from ..config.visible import visible

console = PlainConsole()

Advance = Callable[[float], None]
"""Called with the units of work done since the last call."""


def echo(message: RenderableType, style: str | None = None) -> None:
    """Print a line or a table, on the main process only.

    Args:
        message (`str` or `rich.console.RenderableType`):
            What to print. Markup in it is text.
        style (`str`, *optional*):
            The style of a line: `"yellow"` for a warning.
    """
    if PartialState().is_main_process:
        console.print(message, style=style)


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """Show a progress bar with the remaining time, on the main process only.

    Args:
        description (`str`):
            Label of the bar.
        total (`int`):
            Units of work of all processes together. Each process advances the bar on behalf of all.
    """
    state = PartialState()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    is_seen = state.is_main_process and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not is_seen) as progress:
        task = progress.add_task(visible(description), total=total)
        yield lambda done: progress.update(task, advance=done * state.num_processes)


class StepBar(TrainerCallback):
    """Trainer callback that shows optimizer steps as a progress bar or, without a terminal, as lines."""

    def __init__(self, description: str) -> None:
        self.description = description

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._bar = bar(self.description, state.max_steps)
        self._advance = self._bar.__enter__()
        self._processes = PartialState().num_processes
        self._advance(state.global_step / self._processes)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not console.is_terminal and logs and "loss" in logs:
            reward = _show_reward(logs["reward"]) if "reward" in logs else ""
            step = f"step {state.global_step} of {state.max_steps}"
            echo(f"{self.description}: {step}, loss {float(logs['loss']):.4f}{reward}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._advance(1 / self._processes)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._bar.__exit__(None, None, None)


def _show_reward(value: float | str | None) -> str:
    """Return the mean reward of a log window as text. It is None or NaN if no completion of the window had a reward."""
    mean = math.nan if value is None else float(value)
    return ", no reward" if math.isnan(mean) else f", reward {mean:.3f}"
