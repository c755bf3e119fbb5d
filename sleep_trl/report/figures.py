"""The figures of a report: pure functions from what `results.json` holds to plotly figures.

Figures have no colors of their own. Each trace names a hue in its `meta`, and the page takes the color from its style
sheet, so that light and dark are defined in one place.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.visible import visible
from ..evaluation.recalls import recalls
from .words import finite, percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HUES = ("blue", "orange", "green", "purple", "yellow", "sky", "gray")
PARTS = ("memory", "general", "earlier", "dream")  # of the data set, in the order of their hues
DASHES = {"rollout": "solid", "reference": "dot"}
STEP = "step (optimizer updates)"
MAX_LABELED_PAIRS = 4  # pairs of bars that have space for their numbers, even on a phone
MAX_LABEL = 40  # characters; the summary of the figure has the full text
MAX_MARKERS = 40  # points up to which each has a marker, so that a single point is visible

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A figure with its texts.

    Args:
        id (`str`): the HTML element's id.
        title (`str`): heading.
        caption (`str`): what to look for.
        plot (`plotly.graph_objects.Figure`): the figure.
        summary (`str`): its numbers as text, for screen readers.
    """

    id: str
    title: str
    caption: str
    plot: Figure
    summary: str


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return the charts that a run has data for, in page order.

    Args:
        results (`Mapping[str, Any]`): what `results.json` holds.
    """
    history = results.get("history") or []
    made = [
        *map(recall_chart, recalls(results)),
        skill_chart(results["base_skill"], results.get("retention") or {}),
        loss_chart(history),
        reward_chart(history),
        divergence_chart(history),
        seconds_chart(results["seconds"]),
    ]
    return [chart for chart in made if chart is not None]


def recall_chart(recall: Mapping[str, Any]) -> Chart | None:
    """Draw one of [`recalls`], before, with context and after, as bars, or return `None` if it was not measured."""
    bars = (
        ("before", "before", "gray"),
        ("with<br>the text", "with_context", "orange"),
        ("after", "after", "blue"),
    )
    shares = {key: finite(recall[key]) for _, key, _ in bars}
    if all(share is None for share in shares.values()):
        return None
    plot = empty_figure(y="questions answered (%)")
    for name, key, hue in bars:
        plot.add_bar(x=[name], y=percents([shares[key]]), text=[percent(shares[key])], meta={"hue": hue})
    plot.update_layout(showlegend=False, barmode="overlay")
    _percent_axes(plot)
    which = "Questions about the memories"
    if is_teachers := recall["is_teachers"]:
        which = f"{recall['count']} questions that the teacher wrote about the memories and nobody trained on"
    return Chart(
        "recall-of-teachers" if is_teachers else "recall",
        "Recall of the teacher's questions" if is_teachers else "Recall of the memories",
        f"{which}, answered without the text before and after the night, and with the text in the "
        "context, like the teacher. The nearer the last bar comes to the middle one, the more was learned.",
        plot,
        "; ".join(f"{name.replace('<br>', ' ')}: {percent(shares[key])}" for name, key, _ in bars),
    )


def skill_chart(skill: Mapping[str, Any], retention: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """Draw the base skill and the recall of earlier entries, before and after, as pairs of bars."""
    groups = {"base skill": skill, **{f"recall of {entry}": values for entry, values in retention.items()}}
    pairs = {name: (finite(v["before"]), finite(v["after"])) for name, v in groups.items()}
    pairs = {name: pair for name, pair in pairs.items() if pair != (None, None)}
    if not pairs:
        return None
    plot, has_space = empty_figure(y="score (%)"), len(pairs) <= MAX_LABELED_PAIRS
    for side, (name, hue) in enumerate((("before", "gray"), ("after", "blue"))):
        shares = [pair[side] for pair in pairs.values()]
        plot.add_bar(
            x=[label(group).replace("recall of ", "recall of<br>", 1) for group in pairs],
            y=percents(shares),
            text=[f"{v:.1f}" if v is not None else "" for v in percents(shares)] if has_space else None,
            constraintext="none",
            textfont_size=11,
            name=name,
            meta={"hue": hue},
        )
    plot.update_layout(barmode="group", bargap=0.4)
    _percent_axes(plot)
    return Chart(
        "skill",
        "Retention",
        f"Both bars of a pair should be equal; a lower second bar is forgetting. Base skill: {skill['measure']}.",
        plot,
        "; ".join(f"{name}: {percent(a)} before, {percent(b)} after" for name, (a, b) in pairs.items()),
    )


def loss_chart(history: Rows) -> Chart | None:
    """Draw the loss at each step, or return `None` if there is none."""
    return _lines(
        "loss",
        "Loss",
        "It should fall and level off. Its policy-gradient term is near zero on average, so small fluctuations are "
        "normal; a lasting jump is not.",
        history,
        {"loss": ("loss", "blue", "solid")},
        "loss (weighted sum of its parts)",
    )


def reward_chart(history: Rows) -> Chart | None:
    """Draw the mean of each reward function, and of their weighted sum if it differs."""
    pattern = re.compile(r"rewards/(.+)/mean", re.DOTALL)
    names = {key: match[1] for key in _keys(history) if (match := pattern.fullmatch(key))}
    lines = {key: (name, HUES[i % len(HUES)], "solid") for i, (key, name) in enumerate(names.items())}
    if not any(series(history, "reward") == series(history, key) for key in names):
        lines["reward"] = ("weighted sum", "ink", "dash")
    return _lines(
        "reward",
        "Reward",
        "It should rise as the model's own answers, written without the text, come closer to the teacher's. A flat "
        "line at zero means that a reward function never scores.",
        history,
        lines,
        "mean reward of a completion",
    )


def divergence_chart(history: Rows) -> Chart | None:
    """Draw the divergence from the teacher, and the cross-entropy on its references, by part of the data set and kind
    of completion."""
    lines = {}
    found = [
        match.groups() for key in _keys(history) if (match := re.fullmatch(r"(divergence|sft)/([^/]+)/([^/]+)", key))
    ]
    parts = [*PARTS, *sorted({part for _, part, _ in found} - set(PARTS))]
    for loss, part, kind in sorted(found, key=lambda key: (parts.index(key[1]), key[2] != "rollout", key[2], key[0])):
        hue = HUES[parts.index(part) % len(HUES)]
        style = DASHES.get(kind, "dashdot") if loss == "divergence" else "dash"
        lines[f"{loss}/{part}/{kind}"] = (f"{part}, {kind}" + ("" if loss == "divergence" else ", SFT"), hue, style)
    return _lines(
        "divergence",
        "Divergence from the teacher",
        "Memory and dream should fall, as the model without the text learns to predict what it predicts with the text. "
        "General and earlier should stay near zero; a rise there is forgetting. Solid: on the model's own rollouts. "
        "Dotted: on the teacher's references. Dashed: the cross-entropy on these (SFT).",
        history,
        lines,
        "nats per token",
    )


def seconds_chart(seconds: Mapping[str, Any]) -> Chart | None:
    """Draw the seconds of each phase as one stacked bar."""
    phases = {name: value for name, s in seconds.items() if name != "total" and (value := finite(s)) is not None}
    if not phases:
        return None
    plot = empty_figure(x="time (s)")
    for i, (phase, value) in enumerate(phases.items()):
        plot.add_bar(
            x=[value],
            y=["night"],
            orientation="h",
            name=label(phase.replace("_", " ")),
            text=[f"{value:.1f}"],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertemplate="%{x:.1f} s",
            meta={"hue": HUES[i % len(HUES)]},
        )
    plot.update_layout(
        barmode="stack", height=210, legend_traceorder="normal", uniformtext={"minsize": 10, "mode": "hide"}
    )
    plot.update_yaxes(visible=False)
    return Chart(
        "seconds",
        "Time by phase",
        "Most of the time should go to write dataset, in which the teacher writes, and to seed, which trains the "
        "expert.",
        plot,
        "; ".join(f"{phase.replace('_', ' ')}: {value:.1f} seconds" for phase, value in phases.items()),
    )


def series(history: Rows, key: str) -> tuple[list[float], list[float | None]]:
    """Return steps and values of one key of a log history, with `None` for a value that is not finite.

    Args:
        history (`Sequence[Mapping[str, Any]]`): rows as TRL logs them, each with its `step`.
        key (`str`): for example `"loss"`.
    """
    points = [
        (step, finite(row[key])) for row in history if key in row and (step := finite(row.get("step"))) is not None
    ]
    return [step for step, _ in points], [value for _, value in points]


def label(text: str) -> str:
    """Escape untrusted text for a plotly label, which would interpret tags, links and TeX."""
    short = text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"
    return html.escape(visible(short), quote=False).replace("$", "&#36;")


def _lines(
    id: str, title: str, caption: str, history: Rows, lines: Mapping[str, tuple[str, str, str]], unit: str
) -> Chart | None:
    plot, summaries, gaps = empty_figure(x=STEP, y=unit), [], 0
    for key, (name, hue, dash) in lines.items():
        steps, values = series(history, key)
        known = [value for value in values if value is not None]
        gaps += len(values) - len(known)
        if not known:
            continue
        mode = "lines+markers" if len(values) <= MAX_MARKERS else "lines"
        plot.add_scatter(
            x=steps,
            y=values,
            name=label(name),
            mode=mode,
            line={"dash": dash, "width": 2},
            hovertemplate="%{y:.4g}",
            meta={"hue": hue},
        )
        summaries.append(f"{name}: first {known[0]:.4g}, last {known[-1]:.4g}")
    if not summaries:
        return None
    if gaps:
        caption += f" Logged values that are not finite, shown as gaps: {gaps}."
    plot.update_layout(showlegend=len(summaries) > 1, hovermode="x unified")
    drawn = [step for trace in plot.data for step in trace.x]
    if max(drawn) - min(drawn) < 10:
        plot.update_xaxes(dtick=1)  # there is no step 1.5
    return Chart(id, title, caption, plot, "; ".join(summaries))


def empty_figure(x: str = "", y: str = "") -> Figure:
    """Return a figure with named axes and without traces."""
    import plotly.graph_objects as go

    return go.Figure(
        layout={
            "template": "none",
            "height": 340,
            "margin": {"l": 60, "r": 16, "t": 16, "b": 56},
            "font": {"size": 13},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "xaxis": {"title": {"text": x, "standoff": 8}, "automargin": True, "zeroline": False},
            "yaxis": {"title": {"text": y, "standoff": 8}, "automargin": True},
        }
    )


def _percent_axes(plot: Figure) -> None:
    plot.update_traces(textposition="outside", cliponaxis=False, hovertemplate="%{y:.2f} %")
    plot.update_xaxes(type="category")  # else entries named like dates become dates
    plot.update_yaxes(range=[0, 108], tickvals=[0, 25, 50, 75, 100])


def percents(shares: Iterable[Any]) -> list[float | None]:
    """Return shares as percentages, with `None` for those not measured."""
    return [None if (number := finite(share)) is None else 100 * number for share in shares]


def _keys(history: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in history for key in row))
