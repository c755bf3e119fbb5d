"""The recalls of a night, which its table, its report and its verdict show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def recalls(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a night's questions measured.

    Args:
        results (`Mapping[str, Any]`):
            What `results.json` holds.

    Returns:
        `list[dict]`: the recall on the memories' own questions, unless they have none and the teacher's were asked, and
        then that on the teacher's, if some were asked. Shares `before`, `with_context` and `after`, `None` if there are
        no questions; their `count`; `is_teachers`; and `asked_about`, if not all memories have questions of their own.
    """
    own = {**results["recall"], "count": results.get("questions"), "is_teachers": False}
    own |= {"asked_about": results["asked_about"]} if "asked_about" in results else {}
    if not (teachers := results.get("teacher_questions")):
        return [own]
    return [*([own] if own["before"] is not None else ()), {**teachers, "is_teachers": True}]
