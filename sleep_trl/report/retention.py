"""The figures of a chain: how much of each night is kept by later ones. Pure functions, like `figures.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import HUES, Chart, empty_figure, label, percents
from .words import finite, percent

AFTER = "measured after night"
DASHES = ("solid", "dot", "dashdot")  # of nights that share a hue, oldest first
PALEST, DEEPEST = 0.06, 0.55  # opacity of a cell of 0 % and of 100 %; text on it is readable in light and dark


def chain_charts(chain: Mapping[str, Any]) -> list[Chart]:
    """Return the accuracy matrix and the forgetting curves of a chain of at least two nights.

    Args:
        chain (`Mapping[str, Any]`): from [`~sleep_trl.evaluation.retention.describe_chain`].
    """
    measured = [score for row in chain["recall"] for score in row if finite(score) is not None]
    return [matrix_chart(chain), forgetting_chart(chain)] if len(chain["nights"]) > 1 and measured else []


def matrix_chart(chain: Mapping[str, Any]) -> Chart:
    """Draw the recall of every night's questions after every night as a heat map.

    Plotly's heat map is a bitmap, which the page's security policy blocks; this one is made of shapes.
    """
    names, nights = ([label(entry) for entry in chain[key]] for key in ("entries", "nights"))
    scores = [(i, j, share) for j, row in enumerate(chain["recall"]) for i, share in enumerate(percents(row))]
    known = [(i, j, share) for i, j, share in scores if share is not None]
    plot = empty_figure(x="recall of (%)", y=AFTER)
    for i, j, share in known:
        edges = {"x0": i - 0.48, "x1": i + 0.48, "y0": j - 0.48, "y1": j + 0.48}
        plot.add_shape(
            name="blue", opacity=PALEST + (DEEPEST - PALEST) * share / 100, line_width=0, layer="below", **edges
        )
    plot.add_scatter(
        x=[names[i] for i, _, _ in known],
        y=[nights[j] for _, j, _ in known],
        text=[f"{share:.0f}" for _, _, share in known],
        customdata=[share for _, _, share in known],
        mode="text",
        hovertemplate="%{x} after %{y}: %{customdata:.1f} %<extra></extra>",
        meta={"hue": "ink"},
    )
    plot.update_layout(showlegend=False, height=400)
    axis = {"type": "category", "showgrid": False}
    plot.update_xaxes(range=(-0.5, len(names) - 0.5), categoryarray=names, **axis)
    plot.update_yaxes(range=(len(nights) - 0.5, -0.5), categoryarray=nights, **axis)
    measures = (
        ("after the last night", "average"),
        ("after its own night", "after_own_night"),
        ("forgetting", "forgetting"),
        ("backward transfer", "backward_transfer"),
        ("forward transfer", "forward_transfer"),
    )
    summary = "; ".join(f"{name}: {percent(chain[key])}" for name, key in measures)
    return Chart(
        "chain",
        "Recall of every night after every night",
        "A row shows the recall of all nights after that night; the first cell of a column is the night's own. A "
        f"column that fades downwards is forgotten. Means over nights: {summary}.{_left_out(chain)}",
        plot,
        summary,
    )


def forgetting_chart(chain: Mapping[str, Any]) -> Chart:
    """Draw the recall of each night's questions, and the base skill, after each later night."""
    nights = [label(entry) for entry in chain["nights"]]
    plot, summaries = empty_figure(x=AFTER, y="score (%)"), []
    curves = {
        label(entry): [row[number] if number < len(row) else None for row in chain["recall"]]
        for number, entry in enumerate(chain["entries"])
    }
    curves["base skill"] = chain["base_skill"][1:]
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
            line={"dash": "dash" if is_skill else DASHES[number // len(HUES) % len(DASHES)], "width": 2},
            hovertemplate="%{y:.1f} %",
            meta={"hue": "ink" if is_skill else HUES[number % len(HUES)]},
        )
        summaries.append(f"{name}: first {percent(known[0])}, last {percent(known[-1])}")
    plot.update_layout(hovermode="x unified", height=400)
    plot.update_xaxes(type="category")
    plot.update_yaxes(range=[0, 105], tickvals=[0, 25, 50, 75, 100])
    return Chart(
        "forgetting",
        "Forgetting",
        "Each line is the recall of one night's questions, starting with the night that learned them. A level line is "
        f"a memory that is kept. The dashed line is the base skill.{_left_out(chain)}",
        plot,
        "; ".join(summaries),
    )


def _left_out(chain: Mapping[str, Any]) -> str:
    return f" Left out, as dropped or rolled back: {', '.join(chain['left_out'])}." if chain["left_out"] else ""
