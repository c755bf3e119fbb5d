"""Which rows of a batch a reward is asked about: not those of self-replay that lack a column which it needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from sleep_trl.data.parts import LEARNED


def scored_rows(call: Mapping[str, Any], needed: Collection[str]) -> list[int] | None:
    """Return the rows to score, or `None` for all.

    Rows of self-replay have no memory, and so no value in the columns that the memories have in addition.

    Args:
        call (`Mapping[str, Any]`):
            The keywords that TRL calls the reward with.
        needed (`Collection[str]`):
            Arguments that the reward requires.
    """
    columns = [call[name] for name in needed if isinstance(call.get(name), list)]
    rows = [
        row
        for row, part in enumerate(call.get("part") or ())
        if part in LEARNED or all(column[row] is not None for column in columns)
    ]
    return None if len(rows) == len(call.get("part") or ()) else rows


def learned_rows(call: Mapping[str, Any]) -> list[int]:
    """Return the rows of a batch that are not self-replay, most of which have no reward by design."""
    parts = call.get("part") or [LEARNED[0]] * len(call["prompts"])
    return [row for row, part in enumerate(parts) if part in LEARNED]


def only(call: dict[str, Any], rows: list[int] | None) -> dict[str, Any]:
    """Return a call for these rows of a batch."""
    if rows is None:
        return call
    count = len(call["prompts"])
    picked = {
        name: [value[row] for row in rows] if isinstance(value, list) and len(value) == count else value
        for name, value in call.items()
    }
    if (log_extra := call.get("log_extra")) is not None:
        picked["log_extra"] = partial(_log_all, log_extra, rows, count)
    return picked


def spread(values: Sequence[Any], rows: list[int] | None, count: int) -> list[Any]:
    """Return values of these rows as values of the whole batch, with `None` for the others."""
    if rows is None:
        return list(values)
    spread: list[Any] = [None] * count
    for row, value in zip(rows, values, strict=True):
        spread[row] = value
    return spread


def _log_all(log_extra: Any, rows: list[int], count: int, name: str, values: Sequence[Any]) -> None:
    log_extra(name, spread(values, rows, count))
