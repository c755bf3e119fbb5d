"""Numbers and foreign text as words a person can read."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

SKILL_KEPT = 0.005  # a change of the base skill below this is no change: half a point
RECALL_KEPT = 0.02  # earlier nights keep at least 98 % of their recall
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories of what is not seen, or moves what is seen
JOINERS = "\u200c\u200d"  # of the hidden ones these are ordinary spelling in Persian, Hindi and emoji


def visible(text: str) -> str:
    """Return a text in which control, formatting and unpaired surrogate characters are spelled out, as ⟨U+202E⟩.

    Line breaks and tabs stay. What is left can neither reorder the text around it nor break the page's encoding.
    """
    text = text.replace("\r\n", "\n")
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t" + JOINERS else c for c in text
    )


def clip(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters, and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def finite(value: Any) -> float | None:
    """Return a finite number as float, and `None` for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def percent(value: Any) -> str:
    """Return a share in [0, 1] as a percentage, and words for one that was not measured."""
    share = finite(value)
    return "not measured" if share is None else f"{100 * share:.1f}\u00a0%"


def duration(seconds: Any) -> str:
    """Return seconds as hours, minutes and seconds, the last with one decimal below a minute."""
    total = finite(seconds)
    if total is None:
        return "not measured"
    if total < 60:
        return f"{total:.1f}\u00a0s"
    hours, rest = divmod(round(total), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {left}\u00a0s"


def moment(text: str) -> str:
    """Return a time in ISO 8601 to the minute, in UTC; what is no such time stays as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def outcome(entry: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return what became of an entry of the ledger: whether it was taken back, when, and why, or taken in by another.

    Args:
        entry (`Mapping[str, Any]`): a line of `ledger.jsonl`; the fields that tell it are missing in old ones.
        ledger (`Sequence[Mapping]`, *optional*): all lines.
    """
    if reason := entry.get("rolled_back"):
        return f"rolled back by its own night: {reason}"
    if date := entry.get("dropped"):
        return f"dropped by request, {moment(date)}"
    into = [row["id"] for row in ledger if not row.get("dropped") and entry["id"] in row.get("holds", ())]
    return f"consolidated in {into[0]}" if into else "kept"


def verdict(results: Mapping[str, Any]) -> str:
    """Return one sentence on what a night has come to: recall, base skill, earlier nights.

    Args:
        results (`Mapping[str, Any]`): what `results.json` holds.
    """
    undone = f"This night was rolled back: {reason}. " if (reason := results.get("rolled_back")) else ""
    kept = _kept(results["base_skill"]) + _remembered(results.get("retention", {}))
    return f"{undone}{_learned(results['recall'])}; {kept}."


def _learned(recall: Mapping[str, Any]) -> str:
    before, context, after = (finite(recall[key]) for key in ("before", "with_context", "after"))
    if before is None or after is None:
        return "The memories came without questions, so recall was not measured"
    change = f"without the text it answers {percent(after)} of the questions, {percent(before)} before the night"
    if context is None:
        return f"The model's recall was compared with no teacher: {change}"
    if context <= before:
        taught = "nothing to learn" if context else "nothing that the teacher could teach"
        return f"There was {taught}: with the text in its context the model answers {percent(context)}, {change}"
    share = (after - before) / (context - before)
    known = next(
        words
        for least, words in (
            (0.95, "has learned the memories"),
            (0.5, "has learned most of the memories"),
            (0.1, "has learned some of the memories"),
            (-math.inf, "has not learned the memories"),
        )
        if share >= least
    )
    return f"The model {known}: {change}, {percent(context)} with the text in its context"


def _kept(skill: Mapping[str, Any]) -> str:
    before, after = finite(skill["before"]), finite(skill["after"])
    if before is None or after is None:
        return "the base skill was not measured"
    if round(abs(after - before), 6) <= SKILL_KEPT:
        return f"the base skill is kept ({percent(before)} before, {percent(after)} after)"
    verb = "rose" if after > before else "fell"
    return f"the base skill {verb} by {100 * abs(after - before):.1f} points to {percent(after)}"


def _remembered(retention: Mapping[str, Mapping[str, Any]]) -> str:
    changes = {}
    for entry, values in retention.items():
        before, after = finite(values["before"]), finite(values["after"])
        if before is not None and after is not None:
            changes[entry] = (before - after, before)
    if not changes:
        return ""
    worst = max(changes, key=lambda entry: changes[entry][0])
    loss, before = changes[worst]
    if round(loss - RECALL_KEPT * before, 6) <= 0:
        return "; earlier nights are kept"
    return f"; recall of {worst} fell by {100 * loss:.1f} points"
