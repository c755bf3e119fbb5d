"""The report: its numbers are those of the run, foreign text stays text, and nothing is loaded from anywhere."""

import base64
import hashlib
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sleep_trl.report import write_report
from sleep_trl.report.figures import charts, label, series
from sleep_trl.report.page import choose_samples, facts, flatten
from sleep_trl.report.retention import life_charts
from sleep_trl.report.words import clip, duration, percent, verdict, visible

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=alert(2)><a href='https://evil.example/'>x</a>"
    "\u202egpj.exe\u0007\ud800\u2028\"'`{{ 7 * 7 }}%{x}"
)


def make_results(**changes):
    """Return what `results.json` holds after a night of three steps, with changes."""
    steps = [
        {
            "loss": 1.0 / step,
            "reward": 0.2 * step,
            "rewards/imitation/mean": 0.1 * step,
            "rewards/short/mean": 0.3 * step,
            "rewards/imitation/std": 9.0,
            "divergence/memory/rollout": 1.5 / step,
            "divergence/memory/reference": 1.25 / step,
            "divergence/general/rollout": 0.01 * step,
            "step": step,
        }
        for step in (1, 2, 3)
    ]
    results = {
        "recall": {"before": 0.02, "with_context": 0.98, "after": 0.96},
        "base_skill": {"before": 0.987, "after": 0.986, "measure": "greedy agreement with the base"},
        "retention": {"entry-001": {"before": 0.97, "after": 0.965}},
        "parameters": {"base": 200_000, "added": 50_000, "trainable": 10_000},
        "dataset": {"samples": {"memory": 1480, "general": 24, "earlier": 0}, "dropped": {"duplicate": 114}},
        "seconds": {"write_dataset": 30.5, "seed": 120.25, "total": 150.75},
        "entry": "entry-002",
        "history": [*steps, {"train_loss": 0.6, "train_runtime": 3.4, "step": 3}],
        "versions": {"python": "3.11.7", "vllm": None},
        "processes": 1,
        "device": "cpu",
        "seed": 42,
        "config": {"model": "tiny", "seeding": {"alpha": 0.7, "extra": {}}, "memory": {"width": 64}},
    }
    return results | changes


def make_sample(**changes):
    sample = {"part": "memory", "memory_id": "m1", "template": "summary", "prompt": "Sum up:", "reference": "A town."}
    return sample | changes


def make_entry(**changes):
    entry = {
        "id": "entry-002",
        "date": "2026-01-02T03:04:05+00:00",
        "expert": 1,
        "fingerprint": "abc123" * 10,
        "parents": ["entry-001"],
        "sources": [{"id": f"m{i}", "source": f"page {i}", "sha256": "00"} for i in range(6)],
        "metrics": {"before": {"recall": 0.02}, "after": {"recall": 0.96}},
    }
    return entry | changes


def write_run(folder, results, samples=None, entries=None):
    """Write a run's files. JSON in ASCII, so that any string can be in them."""
    (folder / "results.json").write_text(json.dumps(results))
    if samples is not None:
        (folder / "phases").mkdir()
        written = {"seconds": 1.0, "result": {"counts": {}, "dropped": {}, "samples": samples}}
        (folder / "phases" / "write_dataset.json").write_text(json.dumps(written))
    if entries is not None:
        (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


class Page(HTMLParser):
    """A page's elements with their attributes, its scripts, and its text outside them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    @property
    def plots(self):
        return {plot["id"]: plot for plot in json.loads(self.scripts[0])}


def by_id(results):
    return {chart.id: chart for chart in charts(results)}


def lines(chart):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in chart.plot.data}


def test_bars_are_the_results() -> None:
    drawn = by_id(make_results())
    recall = [trace.y[0] for trace in drawn["recall"].plot.data]  # before, with context, after
    assert recall == pytest.approx([2, 98, 96])
    before, after = drawn["skill"].plot.data
    assert list(before.x) == ["base skill", "recall of<br>entry-001"]
    assert list(before.y) == pytest.approx([98.7, 97])
    assert list(after.y) == pytest.approx([98.6, 96.5])
    assert drawn["skill"].plot.layout.xaxis.type == "category"
    seconds = {trace.name: trace.x[0] for trace in drawn["seconds"].plot.data}
    assert seconds == {"write dataset": 30.5, "seed": 120.25}  # the total is their sum, no phase


def test_lines_are_the_history() -> None:
    drawn = by_id(make_results())
    steps = [1, 2, 3]
    assert lines(drawn["loss"])["loss"] == (steps, [1.0, 1 / 2, 1 / 3])
    assert lines(drawn["reward"]) == {
        "imitation": (steps, [0.1 * s for s in steps]),
        "short": (steps, [0.3 * s for s in steps]),
        "weighted sum": (steps, [0.2 * s for s in steps]),
    }
    assert lines(drawn["divergence"]) == {
        "memory, rollout": (steps, [1.5 / s for s in steps]),
        "memory, reference": (steps, [1.25 / s for s in steps]),
        "general, rollout": (steps, [0.01 * s for s in steps]),
    }
    memory, reference, general = drawn["divergence"].plot.data
    assert memory.meta == reference.meta != general.meta  # a part keeps its hue, a kind its dash
    assert (memory.line.dash, reference.line.dash, general.line.dash) == ("solid", "dot", "solid")


def test_sum_of_one_reward_is_not_drawn_twice() -> None:
    history = [{"reward": 0.5, "rewards/imitation/mean": 0.5, "step": 1}]
    assert list(lines(by_id(make_results(history=history))["reward"])) == ["imitation"]


def test_values_that_are_no_numbers_are_gaps() -> None:
    history = [{"loss": v, "step": i} for i, v in enumerate([1.0, math.nan, None, math.inf, 0.5])]
    assert series(history, "loss") == ([0, 1, 2, 3, 4], [1.0, None, None, None, 0.5])
    chart = by_id(make_results(history=history))["loss"]
    assert "gaps: 3." in chart.caption
    assert chart.summary == "loss: first 1, last 0.5"


def make_life(**changes):
    """Return the part `life` of `results.json` after two nights, with changes."""
    life = {
        "entries": ["entry-001", "entry-002"],
        "recall": [[0.9], [0.6, 1.0]],
        "base_skill": [1.0, 0.99, 0.98],
        "average": 0.8,
        "after_own_night": 0.95,
        "forgetting": 0.3,
        "backward_transfer": -0.3,
        "forward_transfer": None,
    }
    return life | changes


def test_a_life_is_drawn_as_matrix_and_curves() -> None:
    matrix, curves = life_charts(make_life())
    cells = {(x, y): share for t in matrix.plot.data for x, y, share in zip(t.x, t.y, t.customdata, strict=True)}
    assert cells == {("entry-001", "entry-001"): 90, ("entry-001", "entry-002"): 60, ("entry-002", "entry-002"): 100}
    drawn = [(shape.x0 + 0.48, shape.y0 + 0.48, shape.opacity) for shape in matrix.plot.layout.shapes]
    assert drawn == [(0, 0, pytest.approx(0.906)), (0, 1, pytest.approx(0.624)), (1, 1, 1)]
    assert "forgetting: 30.0\u00a0%" in matrix.caption and "forward transfer: not measured" in matrix.summary
    assert {trace.name: list(trace.y) for trace in curves.plot.data} == {
        "entry-001": [90, 60],
        "entry-002": [None, 100],
        "base skill": [99, 98],
    }


@pytest.mark.parametrize(
    "life", [{}, make_life(entries=["entry-001"], recall=[[0.9]]), make_life(recall=[[None], [None, None]])]
)
def test_one_night_or_no_questions_draw_no_life(life) -> None:
    assert life_charts(life) == []


def test_one_step_is_seen() -> None:
    (trace,) = by_id(make_results(history=[{"loss": 0.25, "step": 1}]))["loss"].plot.data
    assert "markers" in trace.mode
    assert list(trace.y) == [0.25]


@pytest.mark.parametrize("history", [[], None, [{"train_loss": 0.6, "step": 3}], [{"loss": math.nan, "step": 1}]])
def test_no_history_no_lines(history) -> None:
    assert set(by_id(make_results(history=history))) == {"recall", "skill", "seconds"}


def test_page_holds_the_figures_and_the_numbers(tmp_path) -> None:
    results = make_results()
    path = write_report(write_run(tmp_path, results, [make_sample()], [make_entry()]))
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 8_000_000
    assert not list(tmp_path.glob("*.partial"))
    page = Page(path)
    assert list(page.plots) == ["recall", "skill", "loss", "reward", "divergence", "seconds"]
    assert page.plots["loss"]["data"][0]["y"] == [1.0, 1 / 2, 1 / 3]
    for id in page.plots:
        assert f"{id}-plot" in page.attributes("id")
    for words in ("2.0\u00a0% → 96.0\u00a0%", "50,000", "10,000 trained tonight", "1,480", "duplicate", "A town."):
        assert words in page.text
    for words in ("and 2 more", "abc123abc123", "seeding.alpha", "not installed", "2\u00a0min 31\u00a0s"):
        assert words in page.text
    assert verdict(results) in page.text
    assert ("html", {"lang": "en"}) in page.elements
    tables = [tag for tag, _ in page.elements].count("table")
    assert tables == [tag for tag, _ in page.elements].count("caption") == 6
    assert sum(attrs.get("role") == "img" and bool(attrs["aria-label"]) for _, attrs in page.elements) == 6


def test_page_loads_nothing_and_admits_its_own_scripts_only(tmp_path) -> None:
    page = Page(write_report(write_run(tmp_path, make_results(), [make_sample()], [make_entry()])))
    for name in ("src", "href", "srcset", "action", "data", "poster"):
        assert page.attributes(name) == []
    assert not {"link", "iframe", "object", "embed", "base", "img"} & {tag for tag, _ in page.elements}
    outside = page.source
    for script in page.scripts:
        outside = outside.replace(script, "")
    assert "://" not in outside
    assert "@import" not in outside and "url(" not in outside
    (policy,) = [attrs["content"] or "" for _, attrs in page.elements if "Content-Security-Policy" in attrs.values()]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    admitted = re.findall(r"'sha256-([^']+)'", policy)
    assert "unsafe-inline" not in policy.split("script-src")[1]
    _, library, draw = page.scripts
    assert admitted == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (library, draw)]


def test_foreign_text_does_no_harm(tmp_path) -> None:
    history = [
        {f"rewards/{HOSTILE}/mean": 0.5, f"divergence/{HOSTILE.replace('/', '')}/x": 0.5, "reward": 1, "step": 1}
    ]
    results = make_results(
        entry=HOSTILE,
        history=history,
        retention={HOSTILE: {"before": 0.5, "after": 0.1}},
        life=make_life(entries=[HOSTILE, "entry-002"]),
        base_skill={"before": 1.0, "after": 1.0, "measure": HOSTILE},
        seconds={HOSTILE: 1.0, "total": 1.0},
        dataset={"samples": {HOSTILE: 1}, "dropped": {HOSTILE: 2}},
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: {HOSTILE: HOSTILE}, "list": [HOSTILE]},
        device=HOSTILE,
    )
    sample = dict.fromkeys(("part", "memory_id", "template", "prompt", "reference"), HOSTILE)
    entry = make_entry(id=HOSTILE, date=HOSTILE, fingerprint=HOSTILE, sources=[{"id": HOSTILE, "source": HOSTILE}])
    page = Page(write_report(write_run(tmp_path, results, [sample], [entry])))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == len(page.scripts) == 3
    assert "img" not in tags and "a" not in tags
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count(visible(HOSTILE)) >= 15  # it is there, as text
    assert "<" not in page.scripts[0]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u0007\u2028\ud800]", page.text + page.scripts[0])
    names = [trace.get("name", "") for plot in page.plots.values() for trace in plot["data"]]
    names += [x for trace in page.plots["skill"]["data"] for x in trace["x"]]
    names += [x for id in ("life", "forgetting") for trace in page.plots[id]["data"] for x in trace["x"]]
    assert label(HOSTILE) in names
    assert label("recall of " + HOSTILE).replace("of ", "of<br>", 1) in names
    assert not any(
        "<" in name.replace("recall of<br>", "") for name in names
    )  # plotly would make tags, and links, of it


def test_missing_pieces_are_named(tmp_path) -> None:
    nothing = {"before": None, "with_context": None, "after": None}
    results = make_results(
        recall=nothing, base_skill={"before": 1.0, "after": None, "measure": "x"}, retention={}, history=[]
    )
    for key in ("versions", "config", "dataset", "history", "retention"):
        del results[key]
    page = Page(write_report(write_run(tmp_path, results)))
    assert list(page.plots) == ["skill", "seconds"]
    for words in (
        "memories came without questions",
        "logged no step",
        "No samples to show",
        "No entry",
        "not recorded",
    ):
        assert words in page.text


def test_missing_results_are_a_mistake_with_a_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"results\.json does not exist"):
        write_report(tmp_path)


def test_missing_plotly_says_what_to_install(tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"] + ["plotly"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=re.escape("pip install 'sleep-trl[report]'")):
        write_report(write_run(tmp_path, make_results()))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        ((0.02, 0.98, 0.96), "The model has learned the memories: without the text it answers 96.0 %"),
        ((0.0, 1.0, 0.5), "has learned most of the memories"),
        ((0.0, 1.0, 0.1), "has learned some of the memories"),
        ((0.1, 0.9, 0.05), "has not learned the memories"),
        ((0.0, 0.0, 0.0), "There was nothing that the teacher could teach"),
        ((0.4, 0.4, 0.4), "There was nothing to learn"),
        ((None, None, None), "recall was not measured"),
        ((math.nan, 0.9, 0.5), "recall was not measured"),
    ],
)
def test_verdict_on_recall(recall, expected) -> None:
    results = make_results(recall=dict(zip(("before", "with_context", "after"), recall, strict=True)))
    assert expected in verdict(results).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("skill", "expected"),
    [
        ((1.0, 0.996), "the base skill is kept"),
        ((0.99, 0.90), "the base skill fell by 9.0 points to 90.0 %"),
        ((0.90, 0.92), "the base skill rose by 2.0 points to 92.0 %"),
        ((1.0, None), "the base skill was not measured"),
    ],
)
def test_verdict_on_base_skill(skill, expected) -> None:
    results = make_results(base_skill={"before": skill[0], "after": skill[1], "measure": "x"})
    assert expected in verdict(results).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ({}, "after)."),
        ({"entry-001": {"before": 1.0, "after": 0.98}}, "; earlier nights are kept."),
        ({"entry-001": {"before": 1.0, "after": 0.97}}, "; recall of entry-001 fell by 3.0 points."),
        ({"entry-001": {"before": None, "after": None}}, "after)."),
    ],
)
def test_verdict_on_earlier_nights(retention, expected) -> None:
    assert verdict(make_results(retention=retention)).endswith(expected)


def test_samples_are_chosen_from_every_part_and_template() -> None:
    kinds = [
        ("memory", "summary", 50),
        ("memory", "paraphrase", 2),
        ("general", "general", 9),
        ("earlier", "summary", 1),
    ]
    samples = [make_sample(part=p, template=t, prompt=str(i)) for p, t, n in kinds for i in range(n)]
    chosen = choose_samples(samples, 12)
    assert len(chosen) == 12
    counts = {(p, t): sum((s["part"], s["template"]) == (p, t) for s in chosen) for p, t, _ in kinds}
    assert counts == {
        ("memory", "summary"): 5,
        ("memory", "paraphrase"): 2,
        ("general", "general"): 4,
        ("earlier", "summary"): 1,
    }
    assert [s["prompt"] for s in chosen if s["template"] == "summary"][:5] == ["0", "10", "20", "30", "40"]
    assert [s["part"] for s in chosen] == ["memory"] * 7 + ["general"] * 4 + ["earlier"]
    assert choose_samples(samples[:3], 12) == samples[:3]
    assert choose_samples([], 12) == []


def test_words() -> None:
    assert visible("a\u202eb\r\nc\td\x00\ud800") == "a⟨U+202E⟩b\nc\td⟨U+0000⟩⟨U+D800⟩"
    assert visible("نمی\u200cخواهم") == "نمی\u200cخواهم"
    assert clip("abcdef", 4) == "abcd … (2 more characters)"
    assert clip("abcd", 4) == "abcd"
    assert [percent(v).replace("\u00a0", " ") for v in (0.5, 0, None, math.nan, True)] == [
        "50.0 %", "0.0 %", "not measured", "not measured", "not measured",
    ]  # fmt: skip
    assert [duration(v).replace("\u00a0", " ") for v in (7.56, 150.75, 7_500, None)] == [
        "7.6 s", "2 min 31 s", "2 h 5 min", "not measured",
    ]  # fmt: skip
    assert dict(flatten({"a": {"b": {"c": 1}, "d": {}}, "e": None, "f": "x", "g": [1]})) == {
        "a.b.c": "1", "a.d": "{}", "e": "null", "f": "x", "g": "[1]",
    }  # fmt: skip


def test_key_figures() -> None:
    values = {name: value.replace("\u00a0", " ") for name, value, _ in facts(make_results())}
    assert values == {
        "Recall without context": "2.0 % → 96.0 %",
        "Recall with context": "98.0 %",
        "Base skill": "98.7 % → 98.6 %",
        "Parameters added": "50,000",
        "Time": "2 min 31 s",
    }
