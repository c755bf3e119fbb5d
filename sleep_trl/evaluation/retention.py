"""Retention: the accuracy matrix of a chain of nights, and measures derived from it.

Row j of a matrix is the recall on the questions of the nights up to j that the model still holds, measured after night
j. So a row is one longer than the row before, with the night's own recall last, or as long as that if the night only
removed entries, or was dropped later.

The measures are those of continual learning, with a night as a task: backward and forward transfer
of GEM (Lopez-Paz and Ranzato, 2017, arXiv 1706.08840), forgetting of Chaudhry et al. (2018, arXiv 1801.10112).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.table import Table

from ..config import RetentionConfig
from ..runs.ledger import LedgerEntry, measured_nights, standing_nights

Scores = Sequence[float | None]
Matrix = Sequence[Scores]

SKILLS = {"skill": "the base skill", "perplexity": "the perplexity", "agreement": "the agreement with the base"}
ROUNDING = 1e-9
READING = "shipped reading questions"  # in the name of a probe
AGREEMENT = "greedy agreement with the base"  # share of next tokens, on held-out general samples
OF_AGREEMENT = "same next word on held-out texts; another good word counts against it, so below 100 % is normal"
MEASURES = ("average", "after_own_night", "forgetting", "backward_transfer", "forward_transfer")


def accuracy_matrix(entries: Sequence[LedgerEntry]) -> list[list[float | None]]:
    """Return the matrix recorded in a ledger's entries, oldest night first.

    Returns:
        `list[list[float | None]]`: a row for each of [`measured_nights`], with a score in [0, 1] for each of
        [`standing_nights`] up to it; `None` where it was not measured.
    """
    places, matrix = {entry.id: place for place, entry in enumerate(entries)}, []
    for night in measured_nights(entries):
        after = _metrics(night, "after")
        scores = (after.get("earlier") or {}) | {night.id: after.get("recall")}
        learned = [entry.id for entry in standing_nights(entries) if places[entry.id] <= places[night.id]]
        matrix.append([scores.get(entry) for entry in learned])
    return matrix


def average(matrix: Matrix) -> float | None:
    """Return the mean recall of all nights, measured after the last one (GEM's ACC)."""
    return _mean(column[-1] for column in _columns(matrix))


def after_own_night(matrix: Matrix) -> float | None:
    """Return the mean recall of each night directly after it, the first of its column."""
    return _mean(column[0] for column in _columns(matrix))


def backward_transfer(matrix: Matrix) -> float | None:
    """Return the mean change of an earlier night's recall since that night (GEM's BWT); below 0 is forgetting."""
    return _mean(_change(column[0], column[-1]) for column in _columns(matrix) if len(column) > 1)


def forward_transfer(before: Scores, base: Scores) -> float | None:
    """Return the mean increase of a night's recall by the nights before it (GEM's FWT).

    Args:
        before (`Sequence[float | None]`):
            Recall of each night's questions directly before it.
        base (`Sequence[float | None]`):
            Recall of the same questions by the pretrained model (GEM uses a model with random weights); `None` for
            the first night.
    """
    return _mean(_change(b, a) for a, b in zip(before, base, strict=True))


def forgetting(matrix: Matrix) -> float | None:
    """Return the mean difference between the best recall of an earlier night before the last night, and its recall
    after the last night (Chaudhry et al.)."""
    earlier = [column for column in _columns(matrix) if len(column) > 1]
    best = [max((score for score in column[:-1] if score is not None), default=None) for column in earlier]
    return _mean(_change(column[-1], most) for most, column in zip(best, earlier, strict=True))


def describe_chain(entries: Sequence[LedgerEntry]) -> dict[str, Any]:
    """Return the retention of a chain as JSON data, `chain` of `results.json`: of what the model holds, after each
    night that changed it. Nights that were rolled back have no row.

    Returns:
        `dict`: `entries`, the columns of the matrix `recall`, and `nights`, its rows; `left_out`, entries of nights
        that were dropped or rolled back; `base_skill` before the first night and after each; and the measures. `None`
        for values that were not measured or need a second night.
    """
    nights, standing, matrix = measured_nights(entries), standing_nights(entries), accuracy_matrix(entries)
    before = [_metrics(entry, "before") for entry in standing]
    return {
        "entries": [entry.id for entry in standing],
        "nights": [entry.id for entry in nights],
        "left_out": [entry.id for entry in entries if entry.dropped and not entry.holds],
        "recall": matrix,
        "base_skill": _base_skill([_metrics(e, "before") for e in nights[:1]] + [_metrics(e, "after") for e in nights]),
        "average": average(matrix),
        "after_own_night": after_own_night(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(
            [row.get("recall") for row in before], [row.get("base") for row in before]
        ),
    }


def breach(
    policy: RetentionConfig, before: dict[str, Any], after: dict[str, Any], forgotten: Collection[str] = ()
) -> str | None:
    """Describe a loss that exceeds the policy, or return `None`. Values that were not measured are not losses.

    Args:
        policy (`RetentionConfig`):
            Maximum losses of a night, each as a share of the value before it. For `max_skill_loss` these are a drop of
            `skill` and a rise of `perplexity`, or, if neither was measured, a drop of `agreement`.
        before (`dict`):
            Recall of `earlier` entries, `skill`, `perplexity` and `agreement` before the night.
        after (`dict`):
            The same after it.
        forgotten (`Collection[str]`, *optional*):
            Entries that the night dropped on purpose, which do not count.
    """
    had, has = (
        _mean(score for name, score in scores["earlier"].items() if name not in forgotten) for scores in (before, after)
    )
    checks = [("the mean recall of earlier nights", "max_forgetting", policy.max_forgetting, had, has)]
    measured = [name for name in ("skill", "perplexity") if None not in (before.get(name), after.get(name))]
    for name in measured or ["agreement"]:
        checks.append((SKILLS[name], "max_skill_loss", policy.max_skill_loss, before.get(name), after.get(name)))
    for what, option, most, had, has in checks:
        if most is None or had is None or has is None:
            continue
        rises = what == SKILLS["perplexity"]
        if (has - had if rises else had - has) > most * had + ROUNDING:
            change = f"rose from {had:.2f} to {has:.2f}" if rises else f"fell from {_percent(had)} to {_percent(has)} %"
            return f"{what} {change}, more than retention.{option} ({_percent(most)} %) allows"
    return None


def render_chain(chain: dict[str, Any]) -> Table:
    """Return the matrix and its measures as a table for the terminal.

    Args:
        chain (`dict`): from [`describe_chain`].
    """
    nights = "a night" if len(chain["nights"]) == 1 else f"each of {len(chain['nights'])} nights"
    table = Table(title=f"Recall after {nights}, in percent", header_style="bold")
    table.add_column("after night")
    for entry in chain["entries"]:
        table.add_column(f"of {chain['nights'].index(entry) + 1}", justify="right")
    table.add_column("base skill", justify="right")
    for number, (row, skill) in enumerate(zip(chain["recall"], chain["base_skill"][1:], strict=True), start=1):
        empty = [""] * (len(chain["entries"]) - len(row))
        table.add_row(str(number), *map(_percent, row), *empty, _percent(skill))
    measures = MEASURES if len(chain["nights"]) > 1 else MEASURES[:2]  # the others compare nights
    notes = [f"{name.replace('_', ' ')} {_percent(chain[name])}" for name in measures]
    notes += [f"left out, as dropped or rolled back: {', '.join(chain['left_out'])}"] if chain["left_out"] else []
    table.caption = "\n".join(notes)
    return table


def _columns(matrix: Matrix) -> list[list[float | None]]:
    """Return the recall of each night's questions, from its own night on."""
    count = len(matrix[-1]) if matrix else 0
    return [[row[i] for row in matrix if len(row) > i] for i in range(count)]


def _metrics(entry: LedgerEntry, when: str) -> dict[str, Any]:
    return entry.metrics.get(when) or {}


def _base_skill(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """Return the base skill of a chain, as far as it was measured like the newest: by the same questions, or without
    any by the agreement with the pretrained model."""
    if not rows:
        return []
    newest = rows[-1]
    if newest.get("skill") is None:
        return [row.get("agreement") if row.get("skill") is None else None for row in rows]
    return [row.get("skill") if _is_same_probe(row, newest) else None for row in rows]


def _is_same_probe(row: dict[str, Any], newest: dict[str, Any]) -> bool:
    """Whether the same questions were asked. Runs of 0.1 had none but the user's, and did not name them."""
    names = [(metrics.get("probes") or {}).get("skill") for metrics in (row, newest)]
    return names[0] == names[1] if all(names) else not any(name and name.endswith(READING) for name in names)


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
