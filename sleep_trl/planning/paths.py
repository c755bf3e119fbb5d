"""The paths that a run names, checked before torch is imported: wrong ones are told at once, and all together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from symtable import symtable

from ..config import RunConfig
from ..config.model_name import check_exists as check_model_exists
from ..data.sources import check_exists, check_texts_exist
from ..runs.finished import give_base
from ..runs.folder import RunFolder
from ..runs.ledger import active_entries, read_ledger
from .night_source import check_buffer
from .output_dir import check_output

TEXTS = ("dataset.general_texts", "dataset.plain_texts", "evaluation.skill", "evaluation.perplexity")


def check_paths(nights: Sequence[RunConfig]) -> None:
    """Raise if a path that the nights of a run name is missing, or an output folder is not free.

    What a Hub has and what files hold is checked by [`~sleep_trl.planning.preflight.preflight`].

    Args:
        nights (`Sequence[RunConfig]`):
            Those to run: one, or those of a chain that are left, each of which continues the one before.

    Raises:
        `ValueError`: with a line for each path.
    """
    if problems := list(dict.fromkeys(_problems(nights))):
        raise ValueError("\n".join(problems))


def check_continued(run: RunFolder) -> None:
    """Raise `ValueError` unless a folder holds what a night needs of the run that it continues."""
    adapter = run.adapter
    needed = (adapter.description, adapter.experts, adapter.prompts, adapter.questions, run.ledger)
    if missing := run.missing(*needed):
        found = "lacks " + ", ".join(missing) if run.path.is_dir() else "does not exist"
        raise ValueError(f"continue_from: {run.path} {found}. Give the output_dir of a run that has finished.")


def run_that_grew(model: str) -> RunFolder | None:
    """Return the run whose grown model this is, or `None` if it is that of no run."""
    run = RunFolder(Path(model).resolve().parent)
    return run if run.model == Path(model).resolve() and run.ledger.is_file() else None


def check_is_base(night: RunConfig) -> None:
    """Raise `ValueError` if the model is one that has the experts of the run to continue folded in."""
    if night.continue_from is None or (grown := run_that_grew(night.model)) is None:
        return
    if not (continued := RunFolder(night.continue_from)).ledger.is_file():
        return
    held, bases = active_entries(read_ledger(grown.ledger)), {e.base for e in read_ledger(continued.ledger)}
    if any(entry.base in bases for entry in held):
        raise ValueError(
            f"model: {night.model} is the grown model of {grown.path}, and the experts of {continued.path} were made "
            f"on the base model. {give_base(continued)}"
        )


def _problems(nights: Sequence[RunConfig]) -> Iterator[str]:
    for night in nights:
        for check in _checks(night, is_first=night is nights[0]):
            try:
                check()
            except ValueError as error:
                yield str(error)


def _checks(night: RunConfig, is_first: bool) -> Iterator[Callable[[], None]]:
    if night.resume and RunFolder(night.output_dir).is_finished:  # only its report may be missing
        return
    yield partial(check_model_exists, night.model)
    for name in night.teacher_model:
        yield partial(check_model_exists, name, "teacher_model")
    run, source = RunFolder(night.output_dir), night.source
    if source.documents is not None:
        yield partial(check_exists, source.documents)
    elif source.buffer is not None and not run.is_begun:
        yield partial(check_buffer, source.buffer)
    for option in TEXTS:
        if (path := attrgetter(option)(night)) is not None:
            yield partial(check_texts_exist, path, option)
    for option in ("rewards", "dream.rewards"):
        for reward in attrgetter(option)(night):
            yield partial(_check_reward, reward.name, option)
    if is_first and night.continue_from is not None:
        yield partial(check_continued, RunFolder(night.continue_from))
        yield partial(check_is_base, night)
    is_in_use = run.is_begun and not run.is_finished  # perhaps by a process that works on it: its lock tells
    if int(os.environ.get("RANK", 0)) == 0 and not night.resume and not is_in_use:
        yield partial(check_output, night)


def _check_reward(name: str, option: str) -> None:
    """Raise `ValueError` if the file of a reward is missing, `path/to/file.py:function`, or has no such function."""
    place, _, function = name.rpartition(":")
    if not place.endswith(".py"):
        return
    if not Path(place).is_file():
        raise ValueError(f"{option}: {place} does not exist (looked for from {Path.cwd()}). Check the path.")
    try:
        source = Path(place).read_text(encoding="utf-8")
        table = symtable(source, place, "exec")
    except (OSError, ValueError, SyntaxError):
        return  # its import says what is wrong
    if function not in table.get_identifiers() and not re.search(r"import \*|globals\(|__dict__|setattr\(", source):
        own = [child.get_name() for child in table.get_children() if child.get_type() == "function"]
        raise ValueError(f"{option}: {place} has no function {function!r}; its functions: {', '.join(own) or 'none'}.")
