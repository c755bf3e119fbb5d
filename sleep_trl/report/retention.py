"""The figures of a life: what each night left of those before it. Pure functions, like `figures.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import HUES, Chart, empty_figure, label, percents
from .words import finite, percent

LIFE = "night after which it was asked"


def life_charts(life: Mapping[str, Any]) -> list[Chart]:
    """Return the accuracy matrix and the forgetting curves of a life of at least two nights.

    Args:
        life (`Mapping[str, Any]`): the part `life` of `results.json`.
    """
    asked = [score for row in life.get("recall") or [] for score in row if finite(score) is not None]
    return [matrix_chart(life), forgetting_chart(life)] if len(life.get("entries") or []) > 1 and asked else []


def matrix_chart(life: Mapping[str, Any]) -> Chart:
    """Draw the recall of every night's questions after every night as a heat map."""
    names, rows = [label(entry) for entry in life["entries"]], [percents(row) for row in life["recall"]]
    shares = [[*row, *[None] * (len(names) - len(row))] for row in rows]
    plot = empty_figure(x="recall of (%)", y=LIFE)
    plot.add_heatmap(
        x=names,
        y=names,
        z=shares,
        text=[["" if share is None else f"{share:.0f}" for share in row] for row in shares],
        texttemplate="%{text}",
        zmin=0,
        zmax=100,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="%{x} after %{y}: %{z:.1f} %<extra></extra>",
        showscale=False,
        meta={"hue": "blue"},
    )
    plot.update_layout(showlegend=False, height=400)
    plot.update_xaxes(type="category", showgrid=False)
    plot.update_yaxes(type="category", showgrid=False, autorange="reversed")
    measures = (
        ("after the last night", "average"),
        ("right after its own night", "after_own_night"),
        ("forgetting", "forgetting"),
        ("backward transfer", "backward_transfer"),
        ("forward transfer", "forward_transfer"),
    )
    said = "; ".join(f"{name}: {percent(life[key])}" for name, key in measures)
    return Chart(
        "life",
        "Recall of every night after every night",
        "A row is what was still known after that night; the last of it was learnt in it. A column that pales "
        f"downwards was forgotten. Means over nights: {said}.",
        plot,
        said,
    )


def forgetting_chart(life: Mapping[str, Any]) -> Chart:
    """Draw the recall of each night's questions, and the base skill, against the night after which they were asked."""
    nights = [label(entry) for entry in life["entries"]]
    plot, said = empty_figure(x=LIFE, y="score (%)"), []
    curves = {
        name: [None] * number + [row[number] for row in life["recall"][number:]] for number, name in enumerate(nights)
    }
    curves = {**{f"recall of {name}": curve for name, curve in curves.items()}, "base skill": life["base_skill"][1:]}
    for number, (name, curve) in enumerate(curves.items()):
        known = [share for share in curve if finite(share) is not None]
        if not known:
            continue
        is_skill = name == "base skill"
        plot.add_scatter(
            x=nights,
            y=percents(curve),
            name=name,
            mode="lines+markers",
            line={"dash": "dash" if is_skill else "solid", "width": 2},
            hovertemplate="%{y:.1f} %",
            meta={"hue": "ink" if is_skill else HUES[number % len(HUES)]},
        )
        said.append(f"{name}: first {percent(known[0])}, last {percent(known[-1])}")
    plot.update_layout(hovermode="x unified", height=400)
    plot.update_xaxes(type="category")
    plot.update_yaxes(range=[0, 105], tickvals=[0, 25, 50, 75, 100])
    return Chart(
        "forgetting",
        "Forgetting",
        "Each line is one night's questions, from the night that learnt them on. Level lines are memories that stay; "
        "the dashed one is the base skill.",
        plot,
        "; ".join(said),
    )
