"""`report.html` in a browser: its figures, its controls, and untrusted text."""

import json
from pathlib import Path

import pytest

from sleep_trl.config.visible import visible
from sleep_trl.data.drops import DroppedText, pack
from sleep_trl.launch import sleep
from sleep_trl.report import write_report
from tests.planning.test_chain import chain
from tests.report.pages import HOSTILE, make_entry, make_results, make_sample, write_run
from tests.tiny_runs import write_model

pytestmark = pytest.mark.browser

FIGURES = ["recall", "skill", "loss", "reward", "divergence", "seconds", "chain", "forgetting"]
DATE = "2026-01-03T04:05:06+00:00"
LONG = "w" * 300  # a word without a place to break it
DRAWN = """() => Object.fromEntries([...document.querySelectorAll("figure")].map(figure => [figure.id, {
  marks: figure.querySelectorAll(".point, .js-line, .textpoint, .shapelayer path").length,
  right: figure.getBoundingClientRect().right,
  height: figure.querySelector(".main-svg").getBoundingClientRect().height,
}]))"""
WIDER = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"


def dream(**changes: object) -> dict:
    record = {"step": 1, "task_id": "t1", "dream": "Tolu is a cat.", "selected": "top", "score": 0.25, "error": ""}
    trial = {"trial_gain": 0.5, "trial_low": 0.0, "trial_high": 1.0, "trial_reward": 1.0, "rewarded": True}
    return record | trial | changes


@pytest.fixture(scope="module")
def finished_chain(tmp_path_factory) -> Path:
    """The report of the second of two real nights."""
    folder = tmp_path_factory.mktemp("chains")
    words = chain(write_model(folder / "model"), folder / "chain", "one", "two", **{"seeding.steps": 3})
    assert sleep.main([word for word in words if word != "--no-report"]) == 0
    return folder / "chain" / "night-002" / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The report of a night in which every text is hostile, with dreams and dropped entries."""
    results = make_results(
        entry=HOSTILE,
        history=[
            {
                "loss": 1.0,
                "reward": 1.0,
                f"rewards/{HOSTILE}/mean": 0.5,
                f"divergence/{HOSTILE.replace('/', '')}/x": 0.5,
                "step": 1,
            }
        ],
        retention={HOSTILE: {"before": 0.5, "after": 0.1}},
        seconds={HOSTILE: 1.0, "total": 1.0},
        dataset={"samples": {HOSTILE: 1}, "dropped": {LONG: 2}},
        config={HOSTILE: HOSTILE, LONG: LONG},
        rolled_back=HOSTILE,
    )
    sources = [{"id": text, "source": text, "sha256": ""} for text in (HOSTILE, LONG)]
    entries = [
        make_entry(sources=sources),
        make_entry(id="entry-003", dropped=DATE, rolled_back=HOSTILE),
        make_entry(id=HOSTILE),
        make_entry(id=LONG),
        make_entry(id="entry-004", dropped=DATE),
    ]
    samples = [make_sample(prompt=text, reference=text, memory_id=text) for text in (HOSTILE, LONG)]
    folder = write_run(tmp_path_factory.mktemp("hostile"), results, samples, entries)
    questions = [{"question": HOSTILE, "answers": [HOSTILE, LONG]}]
    tasks = [{"task_id": f"t{i}", "context": text, "questions": questions} for i, text in enumerate((HOSTILE, LONG), 1)]
    dreams = [dream(dream=HOSTILE), dream(dream=LONG, error=HOSTILE), dream(task_id="t2", rewarded=False)]
    for name, result in (("write_quiz", tasks), ("dream", dreams)):
        (folder / "phases" / f"{name}.json").write_text(json.dumps({"seconds": 1.0, "result": result}))
    return write_report(folder)


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
@pytest.mark.parametrize("which", ["finished_chain", "hostile"])
def test_everything_is_drawn_without_errors(which, size, scheme, request, open_tab) -> None:
    path = request.getfixturevalue(which)
    tab = open_tab(path.as_uri(), size, color_scheme=scheme)
    drawn = tab.page.evaluate(DRAWN)
    assert list(drawn) == [*FIGURES, *(["capacity"] if which == "finished_chain" else [])]
    assert all(figure["marks"] > 0 and figure["height"] >= 200 for figure in drawn.values()), drawn
    assert all(figure["right"] <= tab.page.viewport_size["width"] for figure in drawn.values()), drawn
    assert tab.errors == []
    assert tab.requests == [path.as_uri()]


@pytest.mark.parametrize("which", ["finished_chain", "hostile"])
def test_nothing_is_wider_than_a_phone(which, request, open_tab) -> None:
    tab = open_tab(request.getfixturevalue(which).as_uri(), "phone")
    tab.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert tab.page.evaluate(WIDER) == 0
    tab.page.emulate_media(media="print")
    assert tab.page.evaluate(WIDER) == 0


def test_tables_hold_the_run(finished_chain, open_tab) -> None:
    page = open_tab(finished_chain.as_uri()).page
    ledger = page.locator(".ledger tbody tr")
    assert [row.locator("th").inner_text() for row in ledger.all()] == ["entry-001", "entry-002"]
    assert "2: one; one" not in ledger.first.inner_text() and "one" in ledger.first.inner_text()
    written = json.loads((finished_chain.parent / "phases" / "write_dataset.json").read_text())["result"]
    about = [sample for sample in written["samples"] if sample["part"] == "memory"]
    shown = len(about) + len(written["dropped_texts"]["rows"])
    assert page.locator("#samples tbody tr").count() == shown <= 300
    parts = page.locator("#dataset + .tables table").first.locator("tbody tr").all_inner_texts()
    counts = written["counts"].items()
    assert [row.split() for row in parts] == [[*part.split("_"), str(count)] for part, count in counts]
    settings = page.locator("details", has_text="Configuration")
    settings.locator("summary").click()
    assert settings.locator("tr", has_text="seeding.steps").locator("td").inner_text() == "3"


def test_samples_are_filtered_by_document_and_outcome(tmp_path, open_tab) -> None:
    dropped = [
        DroppedText("m2", "question_answer", "Ben sleeps.", "Who?", "Mira", reason) for reason in ("known", "echo")
    ]
    samples = [make_sample(sentence="A town."), make_sample(memory_id="m2", sentence="Ben sleeps.")]
    path = write_report(write_run(tmp_path, make_results(), samples, dropped_texts=pack(dropped)))
    tab = open_tab(path.as_uri(), "phone")
    page, rows, status = tab.page, tab.page.locator("#samples tbody tr"), tab.page.get_by_role("status")

    def visible_rows() -> list[str]:
        return [row.locator("th").inner_text() for row in rows.all() if row.is_visible()]

    assert visible_rows() == ["kept", "kept", "known", "echo"]
    page.get_by_label("Document").select_option(label="m2")
    assert visible_rows() == ["kept", "known", "echo"] and status.inner_text() == "3 of the 4 rows on this page match"
    page.get_by_label("Outcome").select_option(label="echo")
    assert visible_rows() == ["echo"]
    page.get_by_label("Document").select_option(label="m1")
    assert visible_rows() == [] and status.inner_text() == "0 of the 4 rows on this page match"
    page.get_by_label("Outcome").select_option(label="all")
    assert visible_rows() == ["kept"] and page.evaluate(WIDER) == 0 and tab.errors == []
    still = open_tab(path.as_uri(), java_script_enabled=False).page
    assert still.locator("#samples tbody tr").count() == 4 and not still.locator("#filters").is_visible()


def test_dreams_open_and_close_by_mouse_and_by_keyboard(hostile, open_tab) -> None:
    page = open_tab(hostile.as_uri()).page
    tasks = page.locator("#dreams ~ details")
    assert tasks.count() == 2 and not page.locator("tr.dream").first.is_visible()
    tasks.first.locator("summary").click()
    assert [row.is_visible() for row in page.locator("tr.dream").all()] == [True, True, False]
    assert "helped; learned by the new expert" in tasks.first.inner_text()
    tasks.first.locator("summary").press("Enter")
    assert not page.locator("tr.dream").first.is_visible()
    tasks.nth(1).locator("summary").press("Space")
    assert [row.is_visible() for row in page.locator("tr.dream").all()] == [False, False, True]


def test_colors_follow_the_system_and_print_is_light(finished_chain, open_tab) -> None:
    page = open_tab(finished_chain.as_uri(), color_scheme="light").page
    bar = "getComputedStyle(document.querySelectorAll('#recall .point path')[1]).fill"
    ink = "getComputedStyle(document.querySelector('#recall .xtick text')).fill"
    seen = {}
    for name, media in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "printed": {"color_scheme": "dark", "media": "print"},
    }.items():
        page.emulate_media(**media)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        seen[name] = (paper, page.evaluate(bar), page.evaluate(ink))
    assert seen["light"] == seen["printed"] == ("rgb(255, 255, 255)", "rgb(213, 94, 0)", "rgb(27, 32, 38)")
    assert seen["dark"] == ("rgb(20, 23, 27)", "rgb(240, 137, 74)", "rgb(230, 233, 237)")


def test_untrusted_text_is_shown_as_text(hostile, open_tab) -> None:
    tab = open_tab(hostile.as_uri())
    page = tab.page
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.inner_text("body").count(visible(HOSTILE).split("\n")[0]) >= 15
    for id in FIGURES:
        figure = page.locator(f"#{id}")
        figure.scroll_into_view_if_needed()
        mark = figure.locator(".point path, path.point, .textpoint").last.bounding_box()
        page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
        figure.locator(".hoverlayer .hovertext, .hoverlayer .legend").first.wait_for()  # it may contain untrusted text
        assert figure.locator("a").count() == 0, f"{id}: plotly made a link of untrusted text"
    assert page.locator("img, iframe, a").count() == 0
    assert page.evaluate("window.pwned") is None
    assert tab.errors == [] and tab.requests == [hostile.as_uri()]


def test_the_policy_holds_even_if_a_script_got_in(hostile, open_tab) -> None:
    tab = open_tab(hostile.as_uri())
    tab.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          document.body.append(script);
          const image = document.createElement("img");
          image.src = "https://evil.example/";
          document.body.append(image);
          document.body.insertAdjacentHTML("beforeend", "<b onclick='window.pwned = 2'>x</b>");
        }"""
    )
    tab.page.locator("b", has_text="x").last.click()
    assert tab.page.evaluate("window.pwned") is None
    assert len(tab.errors) >= 3 and all("Content Security Policy" in words for words in tab.errors)


def test_without_scripts_the_numbers_are_there(finished_chain, open_tab) -> None:
    page = open_tab(finished_chain.as_uri(), java_script_enabled=False).page
    assert "disabled in this browser" in page.inner_text("body")
    assert page.locator(".ledger tbody tr").count() == 2
