"""Formats numbers, outcomes and untrusted text for the report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..config.counting import counted
from ..evaluation.metrics import WEAK_TEACHER
from ..evaluation.recalls import recalls
from ..evaluation.retention import AGREEMENT
from ..runs.ledger import LedgerEntry, active_entries, removed_by

SKILL_KEPT = 0.005  # a smaller change of the base skill, half a point, is not reported
PERPLEXITY_KEPT = 0.005  # a smaller relative change of the perplexity, half a percent, is not reported
FEW_QUESTIONS = 20  # up to which their number says more than a share
LEAST_LEARNED, MOST_LEARNED = 0.1, 0.6  # shares of the memories from which the model has learned some, or most of them
RECALL_KEPT = 0.02  # earlier nights must keep at least 98 % of their recall
FEW_SCORED = 0.5  # a reward that gave a value for less than half of the completions is reported


def clip(text: str, limit: int) -> str:
    """Clip a text to `limit` characters, adding how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def finite(value: Any) -> float | None:
    """Return a finite number as float, or `None` for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def percent(value: Any) -> str:
    """Format a share in [0, 1] as a percentage, or say that it was not measured."""
    share = finite(value)
    return "not measured" if share is None else f"{100 * share:.1f}\u00a0%"


def number(value: Any) -> str:
    """Format a number with two decimals, or say that it was not measured."""
    known = finite(value)
    return "not measured" if known is None else f"{known:,.2f}"


def duration(seconds: Any) -> str:
    """Format seconds as hours, minutes and seconds, with one decimal below a minute."""
    total = finite(seconds)
    if total is None:
        return "not measured"
    if total < 60:
        return f"{total:.1f}\u00a0s"
    hours, rest = divmod(round(total), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {left}\u00a0s"


def moment(text: str) -> str:
    """Format an ISO 8601 time to the minute, in UTC; any other text is returned as it is."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def outcome(entry: LedgerEntry, ledger: Sequence[LedgerEntry], disabled: Collection[str] = ()) -> str:
    """Describe the state of a ledger entry: kept, disabled, rolled back, dropped, removed, consolidated or
    relearned."""
    if entry.rolled_back:
        return f"rolled back by its night: {entry.rolled_back}"
    if entry.dropped:
        night = next((row for row in ledger if entry.id in {gone.id for gone in removed_by(ledger, row)}), None)
        return f"{f'removed by {night.id}' if night else 'dropped by the user'} on {moment(entry.dropped)}"
    into = [row for row in active_entries(ledger) if entry.id in row.holds]
    if into:
        return f"{'relearned' if into[0].is_night else 'consolidated'} into {into[0].id}"
    return "kept, but disabled" if entry.id in disabled else "kept"


def lost_since(dropped: Sequence[LedgerEntry], disabled: Sequence[str]) -> str:
    """Say which entries the model lost after a night; nothing if it lost none."""
    lost = [f"{entry.id} was dropped by the user on {moment(entry.dropped or '')}" for entry in dropped]
    lost += [f"{name} is disabled" for name in disabled]
    without = "it" if len(lost) == 1 else "them"
    return f"{', '.join(lost)}: the model answers without {without}." if lost else ""


def verdict(results: Mapping[str, Any]) -> str:
    """Summarize a night: recall, base skill and earlier nights.

    Args:
        results (`Mapping[str, Any]`): what `results.json` holds, and `since`, which entries the model lost afterwards.
    """
    since = f"{lost} At the end of the night: " if (lost := results.get("since")) else ""
    rolled_back = (
        f"This night was rolled back: {reason}. The model is what it was before; this was measured first. "
        if (reason := results.get("rolled_back"))
        else ""
    )
    removed = results.get("forgotten") or {}
    kept = (
        _kept(results["base_skill"])
        + _perplexity(results.get("perplexity") or {})
        + _earlier_kept(results.get("retention", {}), "the other nights" if removed else "earlier nights")
    )
    if removed:
        return f"{since}{rolled_back}{_removed(removed)}; {kept}."
    recall, *others = recalls(results)
    learned = _learned(recall) + "".join(map(_learned_of_others, others))
    return f"{since}{rolled_back}{learned}; {kept}.{_next_step(recall, results)}"


def silent_rewards(history: Sequence[Mapping[str, Any]], few: float = FEW_SCORED) -> list[str]:
    """Return a line for each reward of a training that failed, or that gave a value for no completion or only few.

    Args:
        history (`Sequence[Mapping]`): rows as TRL logs them, see [`~sleep_trl.rewards.GuardedReward`].
        few (`float`, *optional*, defaults to 0.5): the share of completions below which they are few.
    """
    lines = []
    for key in dict.fromkeys(key for row in history for key in row):
        shares = [share for row in history if (share := finite(row.get(key))) is not None]
        if (match := re.fullmatch(r"rewards/(.+)/(scored|abstained)", key, re.DOTALL)) is None or not shares:
            continue
        name, share = match[1], sum(shares) / len(shares)
        if match[2] == "abstained":
            if share:
                lines.append(f"Reward {name!r} failed for {100 * share:.1f} % of the completions (on_error: abstain)")
        elif not share:
            lines.append(f"Reward {name!r} gave no value for any completion")
        elif share < few:
            lines.append(f"Reward {name!r} gave a value for only {100 * share:.1f} % of the completions")
    return lines


def _removed(forgotten: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what is left of entries that a night removed on purpose."""
    parts = []
    for entry, values in forgotten.items():
        before, after = finite(values["before"]), finite(values["after"])
        if before is None or after is None:
            parts.append(f"{entry}, which has no questions")
        else:
            parts.append(f"{entry}: the model answers {percent(after)} of its questions ({percent(before)} before)")
    return f"The night removed {', '.join(parts)}"


def _learned(recall: Mapping[str, Any]) -> str:
    """Say how much the model has learned by one of [`recalls`]."""
    before, context, after = (finite(recall[key]) for key in ("before", "with_context", "after"))
    if before is None or after is None:
        return (
            "It is not known what the model has learned: the memories have no questions, and none of the teacher's "
            "were held out, so recall was not measured (`questions` in a .jsonl file of memories measure it)"
        )
    count = recall.get("count")
    questions = f"the {counted(count, 'question')}" if count else "the questions"
    if asked := recall.get("asked_about"):
        questions += f" (about {asked['memories']:,} of {counted(asked['of'], 'memory')}; the others have none)"
    questions += " that the teacher wrote and nobody trained on" if recall["is_teachers"] else ""
    said = _counting(count, [before, after, *([] if context is None else [context])])
    change = f"without the text it answers {said(after)} of {questions} ({said(before)} before the night)"
    if context is None:
        return f"The model's recall was not compared with a teacher: {change}"
    if (share := share_learned(before, context, after)) is None:
        nothing = "nothing to learn" if context else "nothing that the teacher could teach"
        return f"There was {nothing}: with the text in its context the model answers {said(context)}, {change}"
    known = next(
        words
        for least, words in (
            (0.95, "has learned"),
            (MOST_LEARNED, "has learned most of"),
            (LEAST_LEARNED, "has learned some of"),
            (-math.inf, "has not learned"),
        )
        if share >= least
    )
    what = "what it was asked about" if asked else "the memories"
    return f"The model {known} {what}: {change}, and {said(context)} with the text in its context"


def _learned_of_others(recall: Mapping[str, Any]) -> str:
    """Say how many of the teacher's questions the model answers about the memories that have none of their own."""
    shares = [finite(recall[key]) or 0.0 for key in ("before", "with_context", "after")]
    before, context, after = map(_counting(recall["count"], shares), shares)
    return (
        f"; of the {counted(recall['count'], 'question')} that the teacher wrote about the other memories and nobody "
        f"trained on, it answers {after} ({before} before the night), and {context} with the text"
    )


def share_learned(before: float, context: float, after: float) -> float | None:
    """Return how much of the memories a model has learned: the smaller of its recall and of the share of what there
    was to gain. `None` if there was nothing."""
    return None if context <= before else min(after, (after - before) / (context - before))


def _counting(count: int | None, shares: Sequence[float]) -> Callable[[float], str]:
    """Return how to format these shares of questions: as numbers of questions if they are few, or as percentages."""
    is_whole = all(abs(share * (count or 0) - round(share * (count or 0))) < 1e-6 for share in shares)  # not so for F1
    return (lambda share: str(round(share * count))) if count and count <= FEW_QUESTIONS and is_whole else percent


def _next_step(recall: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Say what to do if a night has taught nothing; nothing if it has taught something, or there was nothing to."""
    before, context, after = (finite(recall[key]) for key in ("before", "with_context", "after"))
    if before is None or context is None or after is None:
        return ""
    share = share_learned(before, context, after)
    if (share is None and context) or (share is not None and share >= LEAST_LEARNED):
        return ""
    if context < WEAK_TEACHER:
        return (
            " It can learn only what it can answer with the text: check that the questions are about the memories, or "
            "take a stronger model."
        )
    seeding = (results.get("config") or {}).get("seeding") or {}
    longer = "steps (--seeding.steps)" if seeding.get("steps") else "passes (--seeding.passes)"
    return f" It can answer with the text, so train more: more {longer}, or a higher --seeding.learning_rate."


def _kept(skill: Mapping[str, Any]) -> str:
    before, after = finite(skill["before"]), finite(skill["after"])
    if before is None or after is None:
        return "the base skill was not measured"
    if skill.get("measure") == AGREEMENT:
        return f"the base skill was measured only by the agreement with the base model, now {percent(after)}"
    figures = f"({percent(before)} before, {percent(after)} after)"
    change, count = round(abs(after - before), 6), skill.get("questions") or 0
    if change <= SKILL_KEPT:
        return f"the base skill was kept {figures}"
    if count and change <= _uncertainty((before + after) / 2, count):
        return f"the base skill was kept, as far as {counted(count, 'question')} can tell {figures}"
    verb = "rose" if after > before else "fell"
    return f"the base skill {verb} by {100 * abs(after - before):.1f} points to {percent(after)}"


def _uncertainty(share: float, count: int) -> float:
    """Return by how much a share of so many questions may change by chance: its standard error, or one question."""
    return max(1 / count, math.sqrt(share * (1 - share) / count)) + 1e-6


def _perplexity(perplexity: Mapping[str, Any]) -> str:
    before, after = finite(perplexity.get("before")), finite(perplexity.get("after"))
    if before is None or after is None:
        return ""
    if round(abs(after / before - 1), 6) <= PERPLEXITY_KEPT:
        return f"; the perplexity on ordinary texts was kept ({number(before)} before, {number(after)} after)"
    verb = "rose" if after > before else "fell"
    return f"; the perplexity on ordinary texts {verb} by {percent(abs(after / before - 1))} to {number(after)}"


def _earlier_kept(retention: Mapping[str, Mapping[str, Any]], nights: str) -> str:
    """Say whether the recall of these nights was kept."""
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
        return f"; {nights} were kept"
    return f"; recall of {worst} fell by {100 * loss:.1f} points"
