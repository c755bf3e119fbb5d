"""Retention: the accuracy matrix of a chain of nights, and measures derived from it.

Row j of a matrix is the recall on the questions of each night up to j, measured after night j; the last value of a row
is the night's own. The measures are those of continual learning, with a night as a task: backward and forward transfer
of GEM (Lopez-Paz and Ranzato, 2017, arXiv 1706.08840), forgetting of Chaudhry et al. (2018, arXiv 1801.10112).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.table import Table

from ..config import RetentionConfig
from ..runs.ledger import LedgerEntry

Scores = Sequence[float | None]
Matrix = Sequence[Scores]

SKILLS = {"skill": "the base skill", "perplexity": "the perplexity", "agreement": "the agreement with the base"}
ROUNDING = 1e-9
READING = "shipped reading questions"  # in the name of a probe
MEASURES = ("average", "after_own_night", "forgetting", "backward_transfer", "forward_transfer")


def accuracy_matrix(entries: Sequence[LedgerEntry]) -> list[list[float | None]]:
    """Return the triangular matrix recorded in a ledger's entries, oldest night first.

    Returns:
        `list[list[float | None]]`: row j has j + 1 scores in [0, 1]; `None` where it was not measured.
    """
    nights = [_metrics(entry, "after") for entry in entries]
    return [
        [*((after.get("earlier") or {}).get(earlier.id) for earlier in entries[:number]), after.get("recall")]
        for number, after in enumerate(nights)
    ]


def average(matrix: Matrix) -> float | None:
    """Return the mean recall of all nights, measured after the last one (GEM's ACC)."""
    return _mean(matrix[-1])


def after_own_night(matrix: Matrix) -> float | None:
    """Return the mean recall of each night directly after it, the diagonal of the matrix."""
    return _mean(row[-1] for row in matrix)


def backward_transfer(matrix: Matrix) -> float | None:
    """Return the mean change of an earlier night's recall since that night (GEM's BWT); below 0 is forgetting."""
    return _mean(_change(row[-1], last) for row, last in zip(matrix[:-1], matrix[-1], strict=False))


def forward_transfer(before: Scores, base: Scores) -> float | None:
    """Return the mean increase of a night's recall by the nights before it (GEM's FWT).

    Args:
        before (`Sequence[float | None]`):
            Recall of each night's questions directly before it.
        base (`Sequence[float | None]`):
            Recall of the same questions before the first night, by the pretrained model (GEM uses a model with random
            weights).
    """
    return _mean(_change(b, a) for a, b in zip(before[1:], base[1:], strict=True))


def forgetting(matrix: Matrix) -> float | None:
    """Return the mean difference between the best recall of an earlier night before the last night, and its recall
    after the last night (Chaudhry et al.)."""
    columns = [[row[i] for row in matrix[i:-1]] for i in range(len(matrix) - 1)]
    best = [max((score for score in column if score is not None), default=None) for column in columns]
    return _mean(_change(last, most) for most, last in zip(best, matrix[-1], strict=False))


def describe_chain(entries: Sequence[LedgerEntry]) -> dict[str, Any]:
    """Return the retention of a chain as JSON data, `chain` of `results.json`. Nights that were rolled back are left
    out, and so are consolidations of entries, which are not nights.

    Returns:
        `dict`: `entries`, the matrix `recall`, `base_skill` before the first night and after each, and the measures;
        `None` for values that were not measured or need a second night.
    """
    entries = [entry for entry in entries if entry.rolled_back is None and not entry.holds]
    matrix = accuracy_matrix(entries)
    before, after = ([_metrics(entry, when) for entry in entries] for when in ("before", "after"))
    recall_before = [row.get("recall") for row in before]
    chain = {
        "entries": [entry.id for entry in entries],
        "recall": matrix,
        "base_skill": _base_skill([*before[:1], *after]),
        **dict.fromkeys(MEASURES),
    }
    if entries:
        chain |= {
            "average": average(matrix),
            "after_own_night": after_own_night(matrix),
            "forgetting": forgetting(matrix),
            "backward_transfer": backward_transfer(matrix),
            "forward_transfer": forward_transfer(
                recall_before, [recall_before[0], *(row.get("base") for row in before[1:])]
            ),
        }
    return chain


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
    table = Table(title=f"Recall after each of {len(chain['entries'])} nights, in percent", header_style="bold")
    table.add_column("after night")
    for number in range(1, len(chain["entries"]) + 1):
        table.add_column(f"of {number}", justify="right")
    table.add_column("base skill", justify="right")
    for number, (row, skill) in enumerate(zip(chain["recall"], chain["base_skill"][1:], strict=True), start=1):
        empty = [""] * (len(chain["entries"]) - number)
        table.add_row(str(number), *map(_percent, row), *empty, _percent(skill))
    table.caption = "\n".join(f"{name.replace('_', ' ')} {_percent(chain[name])}" for name in MEASURES)
    return table


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
