"""Progress of a night: for each phase a bar with the remaining time or, without a terminal, a line each minute."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from accelerate import PartialState
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config.console import PlainConsole
from ..config.visible import visible

console = PlainConsole()

Advance = Callable[[float], None]
"""Called with the units of work done since the last call."""

BAR_WIDTH = 16  # characters
LINE_EVERY = 60.0  # seconds between two lines of a phase without a terminal


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
    """Show a progress bar with the remaining time or, without a terminal, print a line each minute. Only the main
    process does.

    Args:
        description (`str`):
            Label of the bar.
        total (`int`):
            Units of work of all processes together. Each process advances the bar on behalf of all.
    """
    state = PartialState()
    if state.is_main_process:
        with (_live if console.is_terminal else _lines)(description, total) as advance:
            yield lambda done: advance(done * state.num_processes)
    else:
        yield lambda done: None


@contextmanager
def _live(description: str, total: int) -> Iterator[Advance]:
    """Show a bar that is gone at the end."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:  # what is cut is the label
        task = progress.add_task(visible(description), total=total)
        yield lambda done: progress.update(task, advance=done)


@contextmanager
def _lines(description: str, total: int) -> Iterator[Advance]:
    """Print what is done each minute, from a thread: one batch can take minutes."""
    done, begun, is_over = 0.0, time.monotonic(), threading.Event()

    def advance(units: float) -> None:
        nonlocal done
        done += units

    def print_lines() -> None:
        while not is_over.wait(LINE_EVERY):
            elapsed = timedelta(seconds=int(time.monotonic() - begun))
            line = f"{description}: {min(round(done), total):,} of {total:,} after {elapsed}"
            console.print(line, soft_wrap=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        is_over.set()
        thread.join()


class StepBar(TrainerCallback):
    """Trainer callback that shows optimizer steps as a progress bar or, without a terminal, as lines."""

    def __init__(self, description: str) -> None:
        self.description = description

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # Without a terminal, `on_log` prints lines of its own.
        self._bar = bar(self.description, state.max_steps) if console.is_terminal else nullcontext(lambda done: None)
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
