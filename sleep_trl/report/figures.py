"""The figures of a report: pure functions from what `results.json` holds to plotly figures.

A figure carries no colours of its own. Each trace names a hue in its `meta`, and the page paints it from its style
sheet, so that one place decides what light and dark look like.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .words import finite, percent, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HUES = ("blue", "orange", "green", "purple", "yellow", "sky", "gray")
PARTS = ("memory", "general", "earlier", "dream")  # of the data set; their hues in this order
DASHES = {"rollout": "solid", "reference": "dot"}
STEP = "step (optimizer updates)"
MOST_NUMBERED = 4  # pairs of bars with room for their numbers, on a phone too
LONGEST_LABEL = 40  # characters; the words beside the figure have the rest
FEW = 40  # points up to which each is marked, so that a single one is seen

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A figure with what the page says about it.

    Args:
        id (`str`): the element's id, ours.
        title (`str`): heading.
        caption (`str`): what to look for.
        plot (`plotly.graph_objects.Figure`): the figure.
        summary (`str`): its numbers in words, for those who do not see it.
    """

    id: str
    title: str
    caption: str
    plot: Figure
    summary: str


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return the charts that a run has data for, in the order of the page.

    Args:
        results (`Mapping[str, Any]`): what `results.json` holds.
    """
    history = results.get("history") or []
    made = [
        recall_chart(results["recall"]),
        skill_chart(results["base_skill"], results.get("retention") or {}),
        loss_chart(history),
        reward_chart(history),
        divergence_chart(history),
        seconds_chart(results["seconds"]),
    ]
    return [chart for chart in made if chart is not None]


def recall_chart(recall: Mapping[str, Any]) -> Chart | None:
    """Draw recall before, with context and after as bars; `None` if nothing was asked."""
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
    return Chart(
        "recall",
        "Recall of the memories",
        "Questions about the memories, answered without the text before and after the night, and with the text in the "
        "context, as the teacher has it. The night has worked when the last bar is as high as the middle one.",
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
    plot, has_room = empty_figure(y="score (%)"), len(pairs) <= MOST_NUMBERED
    for side, (name, hue) in enumerate((("before", "gray"), ("after", "blue"))):
        shares = [pair[side] for pair in pairs.values()]
        plot.add_bar(
            x=[label(group).replace("recall of ", "recall of<br>", 1) for group in pairs],
            y=percents(shares),
            text=[f"{v:.1f}" if v is not None else "" for v in percents(shares)] if has_room else None,
            constraintext="none",
            textfont_size=11,
            name=name,
            meta={"hue": hue},
        )
    plot.update_layout(barmode="group", bargap=0.4)
    _percent_axes(plot)
    return Chart(
        "skill",
        "What the model could do before",
        f"Pairs should stand level: a lower second bar is forgetting. Base skill is measured as {skill['measure']}.",
        plot,
        "; ".join(f"{name}: {percent(a)} before, {percent(b)} after" for name, (a, b) in pairs.items()),
    )


def loss_chart(history: Rows) -> Chart | None:
    """Draw the loss against the step; `None` without one."""
    return _lines(
        "loss",
        "Loss",
        "It should come down and level out. Its reinforcement part is near zero on average, so small ups and downs "
        "mean little; a jump that stays does.",
        history,
        {"loss": ("loss", "blue", "solid")},
        "loss (weighted sum of its parts)",
    )


def reward_chart(history: Rows) -> Chart | None:
    """Draw the mean of each reward function, and of their weighted sum where that says something else."""
    pattern = re.compile(r"rewards/(.+)/mean", re.DOTALL)
    names = {key: match[1] for key in _keys(history) if (match := pattern.fullmatch(key))}
    lines = {key: (name, HUES[i % len(HUES)], "solid") for i, (key, name) in enumerate(names.items())}
    if not any(series(history, "reward") == series(history, key) for key in names):
        lines["reward"] = ("weighted sum", "ink", "dash")
    return _lines(
        "reward",
        "Reward",
        "It should rise: the model's own answers, written without the text, come closer to the teacher's. "
        "A flat line at zero says that a reward function never fires.",
        history,
        lines,
        "mean reward of a completion",
    )


def divergence_chart(history: Rows) -> Chart | None:
    """Draw the divergence from the teacher by part of the data set and kind of completion."""
    lines = {}
    found = [tuple(key.split("/")) for key in _keys(history) if re.fullmatch(r"divergence/[^/]+/[^/]+", key)]
    parts = [*PARTS, *sorted({part for _, part, _ in found} - set(PARTS))]
    for _, part, kind in sorted(found, key=lambda key: (parts.index(key[1]), key[2] != "rollout", key[2])):
        hue = HUES[parts.index(part) % len(HUES)]
        lines[f"divergence/{part}/{kind}"] = (f"{part}, {kind}", hue, DASHES.get(kind, "dashdot"))
    return _lines(
        "divergence",
        "Divergence from the teacher",
        "Memory and dream should fall: the model without the text comes to predict what it predicts with it. General "
        "and earlier should stay near zero: what rises there is forgetting. Solid: on the model's own rollouts; "
        "dotted: on the teacher's references.",
        history,
        lines,
        "divergence (nats per token)",
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
        "Where the night's time went. Most of it should be write dataset, in which the teacher writes, and seed, "
        "which trains the expert.",
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
    """Return foreign text for a plotly label, which would otherwise read tags, links among them, and TeX out of it."""
    short = text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
    return html.escape(visible(short), quote=False).replace("$", "&#36;")


def _lines(
    id: str, title: str, caption: str, history: Rows, lines: Mapping[str, tuple[str, str, str]], unit: str
) -> Chart | None:
    plot, said, gaps = empty_figure(x=STEP, y=unit), [], 0
    for key, (name, hue, dash) in lines.items():
        steps, values = series(history, key)
        known = [value for value in values if value is not None]
        gaps += len(values) - len(known)
        if not known:
            continue
        mode = "lines+markers" if len(values) <= FEW else "lines"
        plot.add_scatter(
            x=steps,
            y=values,
            name=label(name),
            mode=mode,
            line={"dash": dash, "width": 2},
            hovertemplate="%{y:.4g}",
            meta={"hue": hue},
        )
        said.append(f"{name}: first {known[0]:.4g}, last {known[-1]:.4g}")
    if not said:
        return None
    if gaps:
        caption += f" Logged values that are no finite numbers, left as gaps: {gaps}."
    plot.update_layout(showlegend=len(said) > 1, hovermode="x unified")
    drawn = [step for trace in plot.data for step in trace.x]
    if max(drawn) - min(drawn) < 10:
        plot.update_xaxes(dtick=1)  # there is no step 1.5
    return Chart(id, title, caption, plot, "; ".join(said))


def empty_figure(x: str = "", y: str = "") -> Figure:
    """Return a figure without traces, its axes named."""
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
    plot.update_xaxes(type="category")  # else an entry named like a date becomes one
    plot.update_yaxes(range=[0, 108], tickvals=[0, 25, 50, 75, 100])


def percents(shares: Iterable[Any]) -> list[float | None]:
    """Return shares as percentages, with `None` for what was not measured."""
    return [None if (number := finite(share)) is None else 100 * number for share in shares]


def _keys(history: Rows) -> list[str]:
    return list(dict.fromkeys(key for row in history for key in row))
