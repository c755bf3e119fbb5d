"""Renders a run's folder as `report.html`, a page that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..config.counting import counted
from ..config.visible import visible
from ..data.drops import MOST_EXAMPLES, unpack
from ..data.parts import COUNTED_APART
from ..evaluation.recalls import recalls
from ..evaluation.retention import AGREEMENT, OF_AGREEMENT, describe_chain
from ..runs.files import read_json, write_text
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, owners, read_ledger, removed_by
from .dreams import MEASURES, browse, measure_of
from .figures import PARTS, Chart, charts
from .levels import capacity_charts, count_experts
from .retention import chain_charts
from .samples import browse_samples, name_of
from .words import (
    clip,
    duration,
    finite,
    lost_since,
    moment,
    number,
    outcome,
    percent,
    silent_rewards,
    verdict,
)

SHOWN_SAMPLES = 12
SHOWN_SOURCES = 4  # of a ledger entry
MAX_TEXT = 600  # characters of a sample's prompt or reference

Row = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` from the files in a run's folder.

    Args:
        folder (`Path`):
            The run's folder with `results.json`. The teacher's samples and the dreams (both in `phases/`) and
            `ledger.jsonl` are shown if they exist.

    Returns:
        `Path`: the page, a self-contained file.

    Raises:
        `ValueError`: if plotly is not installed, or a file is missing or broken.
    """
    library = plotly_library()
    files = RunFolder(folder)
    if not files.results.exists():
        problem = f"has no {files.results.name}, which a finished night has" if folder.is_dir() else "is not a folder"
        raise ValueError(f"{folder} {problem}. Give the output_dir of a finished run or of a chain of nights.")
    results = read_json(files.results)
    written = _phase(files, "write_dataset")
    entries = read_ledger(files.ledger) if files.ledger.exists() else []
    description = files.adapter.description
    experts = read_json(description)["experts"] if description.exists() else None
    if written:
        written["dropped_texts"] = unpack(written.get("dropped_texts") or {})
    scale = MEASURES[measure_of(results)].scale
    tasks = browse(_phase(files, "dream") or [], _phase(files, "write_quiz") or [], scale)
    page = render_page(results, written or {"samples": []}, entries, library, *tasks, experts=experts)
    write_text(files.report, page)
    return files.report


def _phase(files: RunFolder, name: str) -> Any:
    """Return the result of a phase, or `None` if there is none."""
    path = files.phases / f"{name}.json"
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
    written: Row,
    ledger: Sequence[LedgerEntry],
    library: str,
    tasks: Sequence[Row] = (),
    dreams_left_out: int = 0,
    experts: Sequence[Row] | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        results (`Mapping`): what `results.json` holds.
        written (`Mapping`): the result of `write_dataset` with `dropped_texts` unpacked; a part of it is shown.
        ledger (`Sequence[LedgerEntry]`): entries of the ledger, oldest first. What the model holds is read from them.
        library (`str`): plotly's JavaScript.
        tasks (`Sequence[Mapping]`, *optional*): windows with their dreams, see [`browse`].
        dreams_left_out (`int`, *optional*, defaults to `0`): number of dreams that are not among them.
        experts (`Sequence[Mapping]`, *optional*): those in `adapter/memory.json`, enabled or not. Default: all are.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # Markup is ours and is not escaped
    )
    environment.filters["clip"] = lambda text: clip(text, MAX_TEXT)
    draw, filters = (environment.get_template(f"{name}.js.j2").render() for name in ("draw", "browse"))
    results = as_of(results, ledger, experts)
    drawn = [
        *charts(results),
        *chain_charts(describe_chain(ledger)),
        *capacity_charts(results.get("capacity") or {}, ledger),
    ]
    dataset = results.get("dataset") or {}
    rows, row_count = browse_samples(written)
    replayed = [sample for sample in written["samples"] if sample["part"] != "memory"]
    coverage = dataset.get("coverage") or {"sentences": 0, "covered": 0}
    return environment.get_template("page.html.j2").render(
        title=f"Night report: {results.get('entry', 'unnamed')}{results['state']}",
        verdict=verdict(results),
        facts=list(facts(results)),
        charts=drawn,
        plots=plot_data(drawn),
        style=Markup(environment.get_template("style.css.j2").render()),
        scripts=[Markup(script) for script in (library, draw, filters)],
        hashes=[source_hash(script) for script in (library, draw, filters)],
        parts=[(COUNTED_APART.get(part, part), count) for part, count in (dataset.get("samples") or {}).items()],
        dropped=sorted((dataset.get("dropped") or {}).items()),
        rows=rows,
        row_count=row_count,
        documents=sorted({row["document"] for row in rows}),
        outcomes=sorted({row["outcome"] for row in rows}),
        most_examples=MOST_EXAMPLES,
        uncovered=[row | {"memory_id": name_of(row["memory_id"], written)} for row in written.get("uncovered") or []],
        uncovered_count=coverage["sentences"] - coverage["covered"],
        replayed=choose_samples(replayed, SHOWN_SAMPLES),
        replayed_count=len(replayed),
        measured=MEASURES[measure_of(results)].change,
        tasks=tasks,
        dreams_left_out=dreams_left_out,
        ledger=ledger,
        change=change,
        moment=moment,
        outcome=outcome,
        shown_sources=SHOWN_SOURCES,
        disabled=results["disabled"],
        since=results["since"],
        is_rolled_back="rolled_back" in results,
        has_removed="forgotten" in results,
        settings=list(flatten(results.get("config") or {})),
        versions=list((results.get("versions") or {}).items()),
        environment=[(key, results[key]) for key in ("seed", "device", "processes") if key in results],
    )


def as_of(results: Row, ledger: Sequence[LedgerEntry], experts: Sequence[Row] | None = None) -> dict[str, Any]:
    """Return results as of now: ledger and experts say what the model holds, and which earlier entries the night
    removed. Results of 0.1 do not tell them from those it was to keep.

    `disabled` are the entries whose expert is disabled, `since` says which entries the model lost after the night, and
    `state` whether its own is one of them.
    """
    enabled = None if experts is None else {expert["index"] for expert in experts if expert["is_enabled"]}
    own, standing = results.get("entry"), dict(results)
    disabled = [] if enabled is None else [name for name, e in owners(ledger).items() if e.expert not in enabled]
    standing["disabled"] = disabled
    if ledger and (capacity := results.get("capacity")):
        by_level = count_experts(ledger)
        standing["capacity"] = {**capacity, "by_level": {str(level): by_level[level] for level in sorted(by_level)}}
        measured = sum(capacity["by_level"].values()) + capacity.get("blocks", 0)
        if enabled is not None and measured:
            added = results["parameters"]["added"] // measured * len(enabled)  # experts have one size
            standing["parameters"] = {**results["parameters"], "added": added}
    night = next((entry for entry in ledger if entry.id == own), None)
    dropped = [e for e in ledger if night and e.dropped and e.is_night and not e.rolled_back and e.dropped > night.date]
    standing["since"] = lost_since(dropped, disabled)
    standing["state"] = " (dropped)" if night in dropped else " (disabled)" if own in disabled else ""
    if night and (removed := {entry.id for entry in removed_by(ledger, night)}):
        earlier = {**(results.get("retention") or {}), **(results.get("forgotten") or {})}
        standing["forgotten"] = {entry: pair for entry, pair in earlier.items() if entry in removed}
        standing["retention"] = {entry: pair for entry, pair in earlier.items() if entry not in removed}
    return standing


def facts(results: Row) -> Iterator[tuple[str, str, str]]:
    """Yield the key figures: name, value and explanation."""
    skill, parameters = results["base_skill"], results["parameters"]
    total = finite(results["seconds"].get("total"))
    undone = ", which was rolled back" if "rolled_back" in results else results.get("state", "")
    for entry, pair in results.get("forgotten", {}).items():
        yield f"Recall of {entry}", change(pair["before"], pair["after"]), "before → after the night, which removed it"
    for recall in () if "forgotten" in results else recalls(results):
        of = f"; {recall['count']} questions of the teacher, not trained on" if recall["is_teachers"] else ""
        yield (
            "Recall without context",
            change(recall["before"], recall["after"]),
            f"before → after the night{undone}{of}",
        )
        yield "Recall with context", percent(recall["with_context"]), f"the teacher's recall{of}"
    measure = f"{AGREEMENT}: {OF_AGREEMENT}" if skill["measure"] == AGREEMENT else skill["measure"]
    yield "Base skill", change(skill["before"], skill["after"]), measure
    if skill["measure"] != AGREEMENT and (agreement := results.get("agreement") or {}).get("before") is not None:
        yield "Agreement with the base", change(agreement["before"], agreement["after"]), OF_AGREEMENT
    left_out = results.get("left_out") or {}
    if reason := left_out.get("skill"):
        yield "Reading questions", "not measured", reason
    if perplexity := results.get("perplexity"):  # missing in results of 0.1
        values = [number(perplexity[when]) for when in ("before", "after")]
        is_measured = finite(perplexity["before"]) is not None
        what = f"{perplexity['texts']}; lower is better" if is_measured else left_out.get("perplexity", "")
        yield "Perplexity", " → ".join(values) if is_measured else "not measured", what
    added, base = parameters["added"], parameters["base"]
    trained = f", {parameters['trainable']:,} trained in this night" if parameters["trainable"] != added else ""
    yield "Parameters added", f"{added:,}", f"{percent(added / base)} of the base's {base:,}{trained}"
    if capacity := results.get("capacity"):
        levels = " · ".join(f"{count} of level {level}" for level, count in capacity["by_level"].items()) or "none"
        if disabled := results.get("disabled"):
            levels += f"; disabled: {', '.join(disabled)}"
        size = capacity["max_experts"] - capacity.get("blocks", 0)  # `blocks` is missing in old results
        yield "Experts", f"{sum(capacity['by_level'].values())} of {size}", levels
    coverage = (results.get("dataset") or {}).get("coverage")
    if coverage and coverage["covered"]:
        share = percent(coverage["covered"] / coverage["sentences"])
        of = f"{coverage['covered']:,} of {coverage['sentences']:,}"
        note = f"{of} sentences of the memories have a usable sample of the teacher"
        if headings := results["dataset"].get("headings"):
            note += f"; {counted(headings, 'heading')} besides, read but not asked about"
        yield "Sentences covered", share, note
    faithful = (results.get("dataset") or {}).get("faithful")
    if faithful and faithful["samples"]:
        share = percent(faithful["faithful"] / faithful["samples"])
        of = f"{faithful['faithful']:,} of {faithful['samples']:,}"
        note = f"{of} answers of the teacher have only words of the text; its questions are not compared with it"
        yield "Answers in words of the text", share, note
    if quoted := (results.get("dataset") or {}).get("quoted"):
        yield (
            "Quoted answers",
            f"{quoted:,}",
            "questions whose answer by the teacher failed its check; their sentence is learned as the answer",
        )
    if (collisions := (results.get("dataset") or {}).get("collisions")) is not None:
        yield (
            "Collisions",
            f"{collisions:,}",
            "samples dropped because several memories answer their prompt differently",
        )
    if unread := results.get("not_read"):
        yield "Not read", f"{unread['faults']:,} files or rows", " · ".join([*unread["reasons"], *unread["ignored"]])
    if left := results.get("not_trained"):
        queued, unusable = left["queued"], left["count"] - left["queued"]
        reasons = f"{queued:,} do not fit in this night and stay queued" if queued else ""
        reasons += (", " if queued else "") + f"nothing usable was written about {unusable:,}" if unusable else ""
        yield "Documents learned", f"{left['of'] - left['count']:,} of {left['of']:,}", reasons
    if silent := silent_rewards(results.get("history") or []):
        yield "Rewards", counted(len(silent), "warning"), " · ".join(silent)
    if load := results.get("load"):
        tokens = [sum(layer[index] for layer in load) for index in range(len(load[0]))]
        shares = " · ".join(percent(count / max(1, sum(tokens))) for count in tokens if count)
        yield "Expert load", shares, "share of routed tokens over all layers, oldest expert first"
    yield "Time", duration(total), f"{total:,.1f} seconds, all phases" if total is not None else "all phases"


def change(before: Any, after: Any) -> str:
    """Return two shares with an arrow in between, or that neither was measured."""
    return percent(None) if before is None and after is None else f"{percent(before)} → {percent(after)}"


def plot_data(drawn: Sequence[Chart]) -> list[dict[str, Any]]:
    """Return the figures as JSON data for the page's script."""
    return [{"id": chart.id, **json.loads(chart.plot.to_json())} for chart in drawn]


def source_hash(script: str) -> str:
    """Return the source expression that allows this inline script in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def choose_samples(samples: Sequence[Row], count: int) -> list[Row]:
    """Choose samples to show: the same number of each part and template, evenly spaced, in the order written.

    Args:
        samples (`Sequence[Mapping]`): samples with `part` and `template`.
        count (`int`): the maximum number.
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
    """Yield a configuration as dotted keys, as on the command line, with JSON values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
