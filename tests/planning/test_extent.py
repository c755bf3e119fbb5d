"""Large inputs: what a plan counts, what it estimates, and how often it reads a text."""

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sleep_trl.config.command_line import parse
from sleep_trl.data.documents import MemoryText
from sleep_trl.data.prompts import Prompter
from sleep_trl.launch.checks import check_trainer
from sleep_trl.planning import extent, fit
from sleep_trl.planning.extent import draw
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.plan import Plan, render
from sleep_trl.planning.preflight import preflight
from sleep_trl.planning.splits import Splits
from tests.tiny_runs import arguments

SENTENCE = "the cat of Mira is called Tolu and it eats hats. "
SIZE = {"dataset__window": 24, "dataset__window_overlap": 0}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every text that the tokenizer reads."""
    texts, ids_of, ids = list[str](), Prompter._ids_of, Prompter.ids

    def many(self: Prompter, given: list[str]) -> list[list[int]]:
        texts.extend(given)
        return ids_of(self, given)

    def one(self: Prompter, text: str) -> list[int]:
        texts.append(text)
        return ids(self, text)

    monkeypatch.setattr(Prompter, "_ids_of", many)
    monkeypatch.setattr(Prompter, "ids", one)
    yield texts


def count_all_of(monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    for module in (extent, fit):
        monkeypatch.setattr(module, "COUNTED", counted)


def inputs_of(model: Path, folder: Path, documents: list[str], **options: object) -> RunInputs:
    path = folder / "docs.jsonl"
    rows = [{"id": str(number), "text": text} for number, text in enumerate(documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return RunInputs(parse(arguments(model=model, memories=path, output_dir=folder / "run", **SIZE | options)))


def text_of(plan: Plan) -> str:
    console = Console(width=500, record=True, file=StringIO())
    console.print(render(plan))
    return console.export_text()


def test_a_plan_reads_each_text_as_a_whole_and_by_sentences(model: Path, tmp_path: Path, read: list[str]) -> None:
    """Once each: a window is as long as its sentences are when they are alone, so that these are counted too."""
    plan = preflight(inputs_of(model, tmp_path, [SENTENCE * 40] * 25), check_trainer)
    assert plan.windows == 25 * 20 and plan.share == 1
    assert sum(text.count("it eats hats") for text in read) <= 2 * 25 * 40 + 200  # and a batch of prompts
    assert "about" not in text_of(plan).split("windows")[1].split("training")[0]


def test_a_plan_of_much_text_is_an_estimate_and_says_so(
    model: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [10, 40, 70] * 16
    documents = [SENTENCE * length for length in lengths]
    inputs = inputs_of(model, tmp_path, documents, dataset__samples_per_sentence=3)
    exact = preflight(inputs, check_trainer)
    assert exact.share == 1 and exact.windows == sum(lengths) // 2
    read.clear()
    count_all_of(monkeypatch, sum(map(len, documents)) // 8)
    plan = preflight(RunInputs(inputs.config), check_trainer)
    assert 1 / 8 <= plan.share < 1 / 7
    assert sum(text.count("it eats hats") for text in read) < len("".join(documents)) // len(SENTENCE) // 2
    for name in ("memory_tokens", "windows", "samples", "steps", "rows"):
        assert getattr(plan, name) == pytest.approx(getattr(exact, name), rel=0.02), name
    assert (plan.memories, plan.peak) == (exact.memories, exact.peak)
    shown = text_of(plan)
    for number in (plan.memory_tokens, plan.windows, plan.samples, plan.steps):
        assert f"about {number:,}" in shown
    assert f"from {plan.share:.1%} of the text; the night counts all of it" in shown


def test_a_night_counts_what_its_plan_estimates(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [SENTENCE * 30] * 20
    count_all_of(monkeypatch, 5_000)
    inputs = inputs_of(model, tmp_path, documents)
    assert preflight(inputs).share < 0.3
    assert len(inputs.reading) == sum(map(len, inputs.windows)) == 20 * 15
    assert inputs.tokens == sum(map(inputs.prompter.count_tokens, documents))


def test_one_long_document_is_estimated_from_pieces(
    model: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extent, "PIECE", 2_000)
    count_all_of(monkeypatch, 20_000)
    plan = preflight(inputs_of(model, tmp_path, [SENTENCE * 4000], seeding__steps=12), check_trainer)
    assert plan.windows == pytest.approx(2000, rel=0.1) and plan.memory_tokens == pytest.approx(48_000, rel=0.1)
    assert (plan.memories, plan.steps) == (1, 12)
    assert sum(map(len, read)) < 100_000 < len(SENTENCE * 4000)


def test_a_night_of_few_steps_reads_little_of_a_long_queue(
    model: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleep_trl.planning.splits.BLOCK", 10_000)
    documents = [SENTENCE * 20] * 200
    options = {"seeding__steps": 12, "dataset__templates": "statement"}
    exact = preflight(inputs_of(model, tmp_path, documents, **options))
    assert exact.queued > 180 and not exact.is_queue_estimated
    read.clear()
    count_all_of(monkeypatch, 20_000)
    plan = preflight(inputs_of(model, tmp_path, documents, **options))
    assert (plan.memories, plan.queued, plan.windows) == (exact.memories, exact.queued, exact.windows)
    assert plan.is_queue_estimated and plan.nights_after == exact.nights_after
    assert f"for about {plan.nights_after:,} more nights" in text_of(plan) and "for about" not in text_of(exact)
    assert sum(map(len, read)) < len("".join(documents)) // 2


def test_memories_are_split_in_blocks_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleep_trl.planning.splits.BLOCK", 100)
    memories = [MemoryText(str(number), "", f"n{number} two three. " * (number + 1)) for number in range(12)]
    calls = list[list[str]]()

    def count_all(texts: list[str]) -> list[int]:
        calls.append(list(texts))
        return [len(text.split()) for text in texts]

    splits = Splits(memories, count_all, 6, 0)
    for number in (5, 0, 11, 3, *range(12)):
        assert splits.tokens(str(number)) == splits.token_counts[str(number)] == 3 * (number + 1)
        assert splits.window_counts[str(number)] == len(splits.windows(str(number))) == -(-(number + 1) // 2)
    whole = [text for texts in calls for text in texts if text in {memory.text for memory in memories}]
    assert sorted(whole) == sorted(memory.text for memory in memories)


def test_what_is_drawn_is_the_same_every_time_and_covers_all() -> None:
    memories = [MemoryText(str(number), "", f"{number} " * 50) for number in range(100)]
    drawn = draw(memories, 2_000)
    assert drawn == draw(memories, 2_000) and 2_000 <= sum(len(text) for _, text in drawn) < 2_000 + 150
    assert max(int(memory.id) for memory, _ in drawn) > 50
    everything = draw(memories, 10**9)
    assert sorted(memory.id for memory, _ in everything) == sorted(memory.id for memory in memories)
    long = MemoryText("long", "", "abc " * 50_000)
    assert sorted("".join(text for _, text in draw([long], 10**9))) == sorted(long.text)
