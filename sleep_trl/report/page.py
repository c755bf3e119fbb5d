"""A run's folder as one page: `report.html`, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..runs.files import read_json, read_jsonl, write_text
from .dreams import browse
from .figures import PARTS, Chart, charts
from .levels import capacity_charts
from .retention import chain_charts
from .words import clip, duration, finite, moment, outcome, percent, verdict, visible

SHOWN_SAMPLES = 12
SHOWN_SOURCES = 4  # of a ledger entry
MOST_TEXT = 600  # characters of a sample's prompt or reference

Row = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's folder from what the run left there.

    Args:
        folder (`Path`):
            Holds `results.json`; what the teacher wrote, the dreams (both in `phases/`) and `ledger.jsonl` are shown if
            they are there.

    Returns:
        `Path`: the page, one file that is readable without a network.

    Raises:
        `ValueError`: if plotly is not installed, or a file is missing or broken.
    """
    library = plotly_library()
    results = read_json(folder / "results.json")
    written = _phase(folder, "write_dataset")
    ledger = folder / "ledger.jsonl"
    entries = list(read_jsonl(ledger)) if ledger.exists() else []
    page = folder / "report.html"
    tasks = browse(_phase(folder, "dream") or [], _phase(folder, "write_quiz") or [])
    write_text(page, render_page(results, written["samples"] if written else [], entries, library, *tasks))
    return page


def _phase(folder: Path, name: str) -> Any:
    """Return what a phase has left, or `None`."""
    path = folder / "phases" / f"{name}.json"
    return read_json(path)["result"] if path.exists() else None


def plotly_library() -> str:
    """Return plotly's JavaScript.

    Raises:
        `ValueError`: if plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ValueError(
            "The report needs plotly, which is missing. Run pip install 'sleep-trl[report]', or set report: false."
        ) from None
    library: str = get_plotlyjs()
    return library


def render_page(
    results: Row,
    samples: Sequence[Row],
    ledger: Sequence[Row],
    library: str,
    tasks: Sequence[Row] = (),
    dreams_left_out: int = 0,
) -> str:
    """Return the page as HTML.

    Args:
        results (`Mapping`): what `results.json` holds.
        samples (`Sequence[Mapping]`): what the teacher wrote, of which a few are shown.
        ledger (`Sequence[Mapping]`): entries of the ledger, oldest first.
        library (`str`): plotly's JavaScript.
        tasks (`Sequence[Mapping]`, *optional*): what was dreamt about, see [`browse`].
        dreams_left_out (`int`, *optional*, defaults to `0`): dreams that are not among them.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is ours and stays as it is
    )
    environment.filters["clip"] = lambda text: clip(text, MOST_TEXT)
    draw = environment.get_template("draw.js.j2").render()
    drawn = [
        *charts(results),
        *chain_charts(results.get("chain") or results.get("life") or {}),
        *capacity_charts(results.get("capacity") or {}, ledger),
    ]
    dataset = results.get("dataset") or {}
    return environment.get_template("page.html.j2").render(
        title=f"Night report: {results.get('entry', 'unnamed')}",
        verdict=verdict(results),
        facts=list(facts(results)),
        charts=drawn,
        plots=plot_data(drawn),
        style=Markup(environment.get_template("style.css.j2").render()),
        scripts=[Markup(library), Markup(draw)],
        hashes=[source_hash(library), source_hash(draw)],
        parts=[(part, count) for part, count in (dataset.get("samples") or {}).items()],
        dropped=sorted((dataset.get("dropped") or {}).items()),
        samples=choose_samples(samples, SHOWN_SAMPLES),
        sample_count=len(samples),
        tasks=tasks,
        dreams_left_out=dreams_left_out,
        ledger=ledger,
        change=change,
        moment=moment,
        outcome=outcome,
        shown_sources=SHOWN_SOURCES,
        settings=list(flatten(results.get("config") or {})),
        versions=list((results.get("versions") or {}).items()),
        surroundings=[(key, results[key]) for key in ("seed", "device", "processes") if key in results],
    )


def facts(results: Row) -> Iterator[tuple[str, str, str]]:
    """Yield the key figures: name, value, and what it refers to."""
    recall, skill, parameters = results["recall"], results["base_skill"], results["parameters"]
    total = finite(results["seconds"].get("total"))
    yield "Recall without context", change(recall["before"], recall["after"]), "before → after the night"
    yield "Recall with context", percent(recall["with_context"]), "what the teacher knows"
    yield "Base skill", change(skill["before"], skill["after"]), skill["measure"]
    added, base = parameters["added"], parameters["base"]
    trained = f", {parameters['trainable']:,} trained tonight" if parameters["trainable"] != added else ""
    yield "Parameters added", f"{added:,}", f"{percent(added / base)} of the base's {base:,}{trained}"
    if capacity := results.get("capacity"):
        levels = " · ".join(f"{count} of level {level}" for level, count in capacity["by_level"].items()) or "none"
        room = capacity["max_experts"] - capacity.get("blocks", 0)  # which results of old nights lack
        yield "Experts", f"{sum(capacity['by_level'].values())} of {room}", levels
    if load := results.get("load"):
        tokens = [sum(layer[index] for layer in load) for index in range(len(load[0]))]
        shares = " · ".join(percent(count / max(1, sum(tokens))) for count in tokens if count)
        yield "Load of the experts", shares, "share of the routed tokens, oldest first, over all layers"
    yield "Time", duration(total), f"{total:,.1f} seconds, all phases" if total is not None else "all phases"


def change(before: Any, after: Any) -> str:
    """Return two shares with an arrow between them, or words if neither was measured."""
    return percent(None) if before is None and after is None else f"{percent(before)} → {percent(after)}"


def plot_data(drawn: Sequence[Chart]) -> list[dict[str, Any]]:
    """Return the figures as the plain data that the page's script draws."""
    return [{"id": chart.id, **json.loads(chart.plot.to_json())} for chart in drawn]


def source_hash(script: str) -> str:
    """Return the source expression by which a Content-Security-Policy admits this one inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def choose_samples(samples: Sequence[Row], count: int) -> list[Row]:
    """Choose samples to show: in turn from each part and template, spread evenly over each, in the order written.

    Args:
        samples (`Sequence[Mapping]`): with `part` and `template`.
        count (`int`): how many at most.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault((sample["part"], sample["template"]), []).append(index)
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < min(count, len(samples)):
        shares[min((g for g in groups if shares[g] < len(groups[g])), key=lambda g: shares[g])] += 1
    chosen = [groups[g][k * len(groups[g]) // share] for g, share in shares.items() for k in range(share)]
    order = {part: place for place, part in enumerate(PARTS)}
    return [samples[i] for i in sorted(chosen, key=lambda i: (order.get(samples[i]["part"], len(order)), i))]


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a configuration as dotted keys, as the command line takes them, with values as JSON."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
