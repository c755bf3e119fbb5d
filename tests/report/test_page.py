"""The page shows the run, escapes untrusted text, and loads nothing."""

import base64
import hashlib
import re
import sys
from dataclasses import replace

import pytest

from sleep_trl.config.visible import visible
from sleep_trl.data.drops import DroppedText, pack
from sleep_trl.report import write_report
from sleep_trl.report.figures import charts, label
from sleep_trl.report.page import choose_samples, facts
from sleep_trl.report.samples import browse_samples
from sleep_trl.report.words import outcome, verdict
from sleep_trl.runs.ledger import LedgerEntry
from tests.report.pages import HOSTILE, Page, make_entry, make_results, make_sample, write_run


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
    for words in (
        "2.0\u00a0% → 96.0\u00a0%",
        "50,000",
        "10,000 trained in this night",
        "1,480",
        "duplicate",
        "A town.",
    ):
        assert words in page.text
    for words in ("and 2 more", "abc123abc123", "seeding.alpha", "not installed", "2\u00a0min 31\u00a0s"):
        assert words in page.text
    assert verdict(results) in page.text
    assert ("html", {"lang": "en"}) in page.elements
    tables = [tag for tag, _ in page.elements].count("table")
    assert tables == [tag for tag, _ in page.elements].count("caption") == 6
    assert sum(attrs.get("role") == "img" and bool(attrs["aria-label"]) for _, attrs in page.elements) == 6


def test_page_loads_nothing_and_allows_only_its_own_scripts(tmp_path) -> None:
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
    assert admitted == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]


def test_untrusted_text_does_no_harm(tmp_path) -> None:
    history = [
        {f"rewards/{HOSTILE}/mean": 0.5, f"divergence/{HOSTILE.replace('/', '')}/x": 0.5, "reward": 1, "step": 1}
    ]
    results = make_results(
        entry=HOSTILE,
        history=history,
        retention={HOSTILE: {"before": 0.5, "after": 0.1}},
        base_skill={"before": 1.0, "after": 1.0, "measure": HOSTILE},
        seconds={HOSTILE: 1.0, "total": 1.0},
        dataset={"samples": {HOSTILE: 1}, "dropped": {HOSTILE: 2}},
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: {HOSTILE: HOSTILE}, "list": [HOSTILE]},
        device=HOSTILE,
    )
    sample = dict.fromkeys(("part", "memory_id", "template", "prompt", "reference"), HOSTILE)
    sources = [{"id": HOSTILE, "source": HOSTILE, "sha256": ""}]
    entry = make_entry(id=HOSTILE, date=HOSTILE, fingerprint=HOSTILE, sources=sources)
    page = Page(write_report(write_run(tmp_path, results, [sample], [entry, make_entry()])))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == len(page.scripts) == 4
    assert "img" not in tags and "a" not in tags
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count(visible(HOSTILE)) >= 15  # shown as text
    assert "<" not in page.scripts[0]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u0007\u2028\ud800]", page.text + page.scripts[0])
    names = [trace.get("name", "") for plot in page.plots.values() for trace in plot["data"]]
    names += [x for trace in page.plots["skill"]["data"] for x in trace["x"]]
    names += [x for id in ("chain", "forgetting") for trace in page.plots[id]["data"] for x in trace["x"]]
    assert label(HOSTILE) in names
    assert label("recall of " + HOSTILE).replace("of ", "of<br>", 1) in names
    assert not any(
        "<" in name.replace("recall of<br>", "") for name in names
    )  # plotly would make tags, and links, of it


def test_dropped_entries_are_listed_with_the_reason(tmp_path) -> None:
    reason = "the base skill fell from 99.0 to 90.0 %"
    date = "2026-01-03T04:05:06+00:00"
    entries = [
        make_entry(id="entry-001"),
        make_entry(id="entry-002", dropped=date, rolled_back=reason),
        make_entry(id="entry-003", dropped=date, rolled_back=None),
        make_entry(id="entry-004", dropped=None, rolled_back=None),
    ]
    page = Page(write_report(write_run(tmp_path, make_results(), entries=entries)))
    ledger = [LedgerEntry.model_validate(entry) for entry in entries]
    outcomes = [outcome(entry, ledger) for entry in ledger]
    assert outcomes == [
        "kept",
        f"rolled back by its night: {reason}",
        "dropped by the user on 2026-01-03 04:05 UTC",
        "kept",
    ]
    assert all(words in page.text for words in outcomes)
    assert page.attributes("class").count("dropped") == 2


REMOVED = {"recall": {"before": None, "with_context": None, "after": None}, "entry": "entry-003"}
PAIRS = {"entry-001": {"before": 0.97, "after": 0.02}, "entry-002": {"before": 0.9, "after": 0.9}}


@pytest.mark.parametrize(
    "split",
    [
        {"retention": {"entry-002": PAIRS["entry-002"]}, "forgotten": {"entry-001": PAIRS["entry-001"]}},
        {"retention": PAIRS},  # 0.1 did not tell them apart
    ],
)
def test_what_a_night_removed_on_purpose_is_not_damage(tmp_path, split) -> None:
    date = "2026-01-03T04:05:06+00:00"
    entries = [
        make_entry(id="entry-001", dropped=date),
        make_entry(metrics={"after": {"recall": 0.9}}),
        make_entry(id="entry-003", date=date, holds=["entry-002"], metrics={"after": {"earlier": {"entry-002": 0.9}}}),
    ]
    page = Page(write_report(write_run(tmp_path, make_results(**REMOVED, **split), entries=entries)))
    text = page.text.replace("\u00a0", " ")
    assert "The night removed entry-001: the model answers 2.0 % of its questions (97.0 % before)" in text
    assert "the other nights were kept" in text and "fell by 95" not in text
    assert "No recall figure: the night had no memories, it removed some." in " ".join(text.split())
    assert [list(trace["x"]) for trace in page.plots["skill"]["data"]] == [["base skill", "recall of<br>entry-002"]] * 2
    cells = page.plots["chain"]["data"][0]
    assert (cells["x"], cells["y"]) == (["entry-002"] * 2, ["entry-002", "entry-003"])
    assert {trace["name"] for trace in page.plots["forgetting"]["data"]} == {"entry-002"}


def test_a_rolled_back_night_says_that_its_figures_do_not_hold(tmp_path) -> None:
    entries = [make_entry(id="entry-001"), make_entry(dropped="now", rolled_back="it cost too much")]
    page = Page(write_report(write_run(tmp_path, make_results(rolled_back="it cost too much"), entries=entries)))
    text = " ".join(page.text.split())
    assert (
        "This night was rolled back: it cost too much. The model is what it was before; this was measured first."
        in text
    )
    assert "The model is what it was before the night, and figures of all nights leave it out." in text
    assert "before → after the night, which was rolled back" in text and "chain" not in page.plots


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
        "memories have no questions",
        "no step was logged",
        "No samples:",
        "No entries:",
        "not recorded",
    ):
        assert words in page.text


def test_missing_results_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has no results\.json, which a finished night has\. Give"):
        write_report(tmp_path)


def test_missing_plotly_says_what_to_install(tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"] + ["plotly"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=re.escape("pip install 'sleep-trl[report]'")):
        write_report(write_run(tmp_path, make_results()))
    assert not (tmp_path / "report.html").exists()


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


DROPPED = [
    DroppedText("m2", "question_answer", "Ben sleeps.", "Who sleeps?", "Mira", "unsupported"),
    DroppedText("m1", "question_answer", "A town.", "What is it?", "A town", "known"),
]


def test_kept_and_dropped_samples_of_a_sentence_stand_side_by_side(tmp_path) -> None:
    samples = [make_sample(sentence="A town."), make_sample(memory_id="m2", sentence="Ben sleeps.", reference="Ben")]
    samples += [make_sample(part="general", memory_id="", reference="Once upon a time")]
    uncovered = [{"memory_id": "m2", "sentence": "The boat is new."}]
    held_out = [make_sample(memory_id="m2", sentence="Ben sleeps.", request="Who is asleep?", reference="Ben")]
    more = {"dropped_texts": pack(DROPPED), "uncovered": uncovered, "teacher_questions": held_out}
    page = Page(write_report(write_run(tmp_path, make_results(), samples, **more)))
    rows = [attrs for tag, attrs in page.elements if tag == "tr" and "data-outcome" in attrs]
    assert [(row["data-document"], row["data-outcome"]) for row in rows] == [
        ("1", "1"), ("1", "3"), ("2", "1"), ("2", "2"), ("2", "4"),
    ]  # fmt: skip
    text = " ".join(page.text.split())
    assert "all kept kept as a question known unsupported" in text and "all m1 m2" in text
    for words in ("Sentences without a usable sample: 6", "The boat is new.", "Who is asleep?", "Once upon a time"):
        assert words in text


def test_memories_are_named_by_their_source(tmp_path) -> None:
    uncovered = [{"memory_id": "m2", "sentence": "The boat is new."}]
    more = {"uncovered": uncovered, "sources": {"m1": "harbor.md", "m2": "square.txt"}}
    samples = [make_sample(sentence="A town."), make_sample(memory_id="m3", sentence="Ben sleeps.")]
    text = " ".join(Page(write_report(write_run(tmp_path, make_results(), samples, **more))).text.split())
    assert "all harbor.md m3" in text and "square.txt The boat is new." in text
    assert "m1" not in text and "m2" not in text


def test_a_big_night_shows_some_samples_of_each_document_and_reason() -> None:
    samples = [make_sample(memory_id=f"m{n % 9}", sentence=f"{n}") for n in range(900)]
    dropped = [
        replace(DROPPED[0], memory_id="m0", sentence=f"{n}", reason="rare" if n == 7 else "known") for n in range(500)
    ]
    rows, count = browse_samples({"samples": samples, "dropped_texts": dropped}, most=100)
    assert count == 1400 and len(rows) <= 100
    assert {row["document"] for row in rows} == {f"m{n}" for n in range(9)}
    assert {row["outcome"] for row in rows} == {"kept", "known", "rare"}


def test_questions_of_the_teacher_are_named_as_such() -> None:
    nothing = {"before": None, "with_context": None, "after": None}
    asked = {"count": 12, "before": 0.0, "with_context": 0.9, "after": 0.85}
    results = make_results(recall=nothing, teacher_questions=asked)
    text = verdict(results).replace("\u00a0", " ")
    assert "answers 85.0 % of the 12 questions that the teacher wrote and nobody trained on (0.0 % before" in text
    values = {name: (value.replace("\u00a0", " "), note) for name, value, note in facts(results)}
    value, note = values["Recall without context"]
    assert value == "0.0 % → 85.0 %" and "12 questions of the teacher, not trained on" in note
    (chart,) = [chart for chart in charts(results) if chart.id == "recall-of-teachers"]
    assert chart.caption.startswith("12 questions that the teacher wrote about the memories and nobody trained on")


def test_both_recalls_are_shown_where_only_some_memories_have_questions() -> None:
    asked = {"count": 12, "before": 0.0, "with_context": 0.9, "after": 0.85}
    results = make_results(teacher_questions=asked, questions=50, asked_about={"memories": 1, "of": 3})
    drawn = [chart.id for chart in charts(results) if chart.id.startswith("recall")]
    assert drawn == ["recall", "recall-of-teachers"]
    values = [(v.replace("\u00a0", " "), note) for name, v, note in facts(results) if name == "Recall without context"]
    assert [value for value, _ in values] == ["2.0 % → 96.0 %", "0.0 % → 85.0 %"]
    assert "teacher" not in values[0][1] and "12 questions of the teacher" in values[1][1]


def test_a_reward_without_values_is_among_the_key_figures() -> None:
    results = make_results(history=[{"step": 1, "rewards/nones/scored": 0.0, "rewards/imitation/scored": 1.0}])
    values = {name: note for name, _, note in facts(results)}
    assert values["Rewards"] == "Reward 'nones' gave no value for any completion"


def test_only_answers_are_compared_with_the_text() -> None:
    notes = {n: note for n, _, note in facts(make_results(dataset={"faithful": {"samples": 104, "faithful": 104}}))}
    said = "104 of 104 answers of the teacher have only words of the text; its questions are not compared with it"
    assert notes["Answers in words of the text"] == said


def test_the_agreement_with_the_base_is_explained() -> None:
    skill = {"before": 1.0, "after": 0.999, "measure": "answers from context to 12 questions"}
    results = make_results(base_skill=skill, agreement={"before": 1.0, "after": 0.839})
    notes = {name: note for name, _, note in facts(results)}
    assert "below 100 % is normal" in notes["Agreement with the base"]
    assert notes["Base skill"] == "answers from context to 12 questions"
    alone = make_results(base_skill=skill | {"measure": "greedy agreement with the base"})
    assert "below 100 % is normal" in {name: note for name, _, note in facts(alone)}["Base skill"]


def test_headings_that_nobody_asks_about_are_counted() -> None:
    dataset = make_results()["dataset"] | {"headings": 2}
    notes = {name: note for name, _, note in facts(make_results(dataset=dataset))}
    assert notes["Sentences covered"].endswith("; 2 headings besides, read but not asked about")


def test_key_figures() -> None:
    values = {name: value.replace("\u00a0", " ") for name, value, _ in facts(make_results())}
    assert values == {
        "Recall without context": "2.0 % → 96.0 %",
        "Sentences covered": "98.3 %",
        "Recall with context": "98.0 %",
        "Base skill": "98.7 % → 98.6 %",
        "Parameters added": "50,000",
        "Time": "2 min 31 s",
    }
