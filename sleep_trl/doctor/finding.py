"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "fault", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Args:
        name (`str`): of the check; filled in by whoever makes it.
        state (`str`): `"fault"` if the run cannot work, `"warning"` if it can but one should know, `"ok"`, or
            `"skipped"` if nothing was looked at.
        found (`str`): what there is.
        remedy (`str`): what to do about it; empty if nothing.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    return Finding("", "ok", found)


def warning(found: str, remedy: str) -> Finding:
    return Finding("", "warning", found, remedy)


def fault(found: str, remedy: str) -> Finding:
    return Finding("", "fault", found, remedy)


def skipped(found: str) -> Finding:
    return Finding("", "skipped", found)


def mistake(message: str) -> Finding:
    """Return the fault of which a `ValueError` of the house tells: its last sentence says what to do."""
    found, point, remedy = message.rstrip().rpartition(". ")
    return fault(found + point.strip(), remedy) if point else fault(message, "Correct what was given.")
