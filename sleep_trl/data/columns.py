"""What the rows of memories have apart from text and questions: columns for rewards, as the columns of a data set are
in TRL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .documents import MemoryText
from .rows import COLUMNS

OF_TRL = ("prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
READ_BY_TRL = ("image", "images", "environment", "environments", "privileged_context")  # they change how TRL trains
RESERVED = {*COLUMNS, *OF_TRL, *READ_BY_TRL}


class ExtraColumns(NamedTuple):
    """Names of the columns that rewards get in addition, and why others are left out, by name."""

    names: tuple[str, ...]
    left_out: dict[str, str]


def extra_columns(memories: Iterable[MemoryText]) -> ExtraColumns:
    """Find the columns of memories that rewards can get: those whose name is free, and whose values are of one type."""
    import pyarrow

    values: dict[str, list[Any]] = {}
    for memory in memories:
        for name, value in memory.columns.items():
            values.setdefault(name, []).append(value)
    left_out = {}
    for name, column in values.items():
        if name in RESERVED:
            left_out[name] = "the rows of a night have a column of that name"
            continue
        try:
            pyarrow.array(column)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            left_out[name] = "its values are of different types"
    return ExtraColumns(tuple(name for name in values if name not in left_out), left_out)


def add_columns(rows: Iterable[dict[str, Any]], memories: Sequence[MemoryText], names: Sequence[str]) -> None:
    """Add columns of the memories to training rows about them; rows of self-replay get `None`. A row keeps its own."""
    by_id: dict[str, Mapping[str, Any]] = {memory.id: memory.columns for memory in memories}
    for row in rows:
        columns = by_id.get(row["memory_id"], {}) if row.get("part") not in ("general", "earlier") else {}
        row |= {name: columns.get(name) for name in names if name not in row}
