"""A night is as long as what there is to learn: what does not fit its steps stays queued."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest

from sleep_trl.config.command_line import parse
from sleep_trl.config.schedule import Schedule
from sleep_trl.data.samples import Sample
from sleep_trl.launch import sleep
from sleep_trl.night import generate_data
from sleep_trl.night.earlier_prompts import choose_prompts
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from sleep_trl.runs.files import read_json, read_jsonl, write_jsonl
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer, record_of_line
from tests.night.test_run import arguments

SHORT = {
    "memory.max_experts": 3,
    "dataset.templates": '["paraphrase"]',
    "dataset.max_new_tokens": 4,
    "dataset.general_samples": 2,
    "dataset.general_share": 0.1,
    "dataset.earlier_share": 0.1,
    "seeding.max_completion_length": 4,
    "seeding.prompts_per_step": 60,
    "evaluation.batch_size": 128,
}


def texts(count: int) -> list[str]:
    return [f"the cat of w{20 + n % 70} is called w{20 + n // 70}" for n in range(count)]


def written(folder: Path) -> dict:
    return read_json(folder / "phases" / "write_dataset.json")["result"]


def ids(folder: Path) -> list[set[str]]:
    return [{source.id for source in entry.sources} for entry in read_ledger(folder / "ledger.jsonl")]


def test_a_thousand_documents_are_each_trained_on_or_queued(model, tmp_path, capsys):
    wake, first, second = tmp_path / "wake.db", tmp_path / "night1", tmp_path / "night2"
    lines = [json.dumps({"id": str(n), "text": text}).encode() for n, text in enumerate(texts(1000))]
    with WakeBuffer(wake) as buffer:
        assert buffer.add([record_of_line("in", line, "stream") for line in lines]).added == 1000
    night = arguments(model, first, memories=f"wake:{wake}", **SHORT | {"seeding.steps": 10})
    plan = preflight(RunInputs(parse(night)))
    fitting = 10 * 54  # 60 prompts a step, of which 6 are general
    assert (plan.memories, plan.queued, plan.samples) == (fitting, 1000 - fitting, fitting)
    assert sleep.main([*night, "--dry_run"]) == 0
    assert f"{fitting} of 1,000 documents fit" in " ".join(capsys.readouterr().out.split())

    def counts() -> Counter[str]:
        with WakeBuffer(wake) as buffer:
            return Counter(record.state for record in buffer.records())

    assert sleep.main(night) == 0
    assert f"{fitting} of 1,000 documents fit" in " ".join(capsys.readouterr().out.split())
    (trained,) = ids(first)
    assert counts() == {"consolidated": len(trained), "new": 1000 - fitting} | (
        {"failed": fitting - len(trained)} if len(trained) < fitting else {}
    )
    missing = read_json(first / "results.json")["not_trained"]
    assert (missing["of"], missing["queued"], missing["count"]) == (1000, 1000 - fitting, 1000 - len(trained))
    assert len(missing["ids"]) == 20 and not trained.intersection(missing["ids"])
    assert "stay queued" in (first / "report.html").read_text()
    again = SHORT | {"seeding.steps": 12}  # 48 rows about memories a step
    assert sleep.main(arguments(model, second, memories=f"wake:{wake}", continue_from=first, **again)) == 0
    before, after = ids(second)
    assert before == trained and not before & after
    assert counts()["new"] == 0 and len(before) + len(after) + counts()["failed"] == 1000
    assert "not_trained" not in read_json(second / "results.json") or counts()["failed"]


def test_the_ledger_names_what_was_trained_on_and_the_next_night_learns_the_rest(model, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    options = SHORT | {"seeding.steps": 2, "seeding.prompts_per_step": 10}
    night = arguments(model, first, **options)
    memories = tmp_path / "one.jsonl"
    write_jsonl(memories, ({"id": str(n), "text": text} for n, text in enumerate(texts(36))))
    with memories.open("a") as file:
        file.write('{"txt": "a bad row"}\n')
    assert sleep.main([*night, "--strict"]) == 2
    capsys.readouterr()
    assert sleep.main(night) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "line 37: the required key `text`" in printed and "could not be read" in printed
    missed = read_json(first / "results.json")["not_read"]
    assert missed["faults"] == 1 and "line 37" in missed["reasons"][0]
    assert "1 files or rows" in (first / "report.html").read_text()
    rows = 2 * 9
    samples = {s["memory_id"] for s in written(first)["samples"] if s["part"] == "memory"}
    assert ids(first) == [samples] and samples <= {str(n) for n in range(rows)}
    assert len(samples) >= rows - 3  # nothing usable is written about some
    assert {row["memory_id"] for row in read_jsonl(first / "adapter" / "prompts.jsonl")} <= ids(first)[0]
    assert read_json(first / "results.json")["not_trained"]["queued"] == 36 - rows
    more = {"memories": memories, "continue_from": first, "seeding.steps": 3}
    words = [word for word in arguments(model, second, **options | more) if not word.startswith("--memories=")]
    write_jsonl(memories, ({"id": str(n), "text": text} for n, text in enumerate(texts(36))))
    assert sleep.main([*words, f"--memories={memories}"]) == 0
    rest = {str(n) for n in range(36)} - ids(first)[0]  # those without a usable sample included
    assert ids(second)[1] <= rest and len(ids(second)[1]) >= len(rest) - 6


def test_passes_give_the_steps(model, tmp_path):
    options = {name: value for name, value in SHORT.items() if name != "seeding.steps"}
    words = arguments(model, tmp_path / "run", **options | {"seeding.prompts_per_step": 10, "seeding.passes": 2})
    words = [word for word in words if not word.startswith("--seeding.steps=")]
    write_jsonl(tmp_path / "one.jsonl", ({"id": str(n), "text": text} for n, text in enumerate(texts(20))))
    plan = preflight(RunInputs(parse(words)))
    assert sleep.main(words) == 0
    seeded = read_json(tmp_path / "run" / "phases" / "seed.json")["result"]
    count = written(tmp_path / "run")["counts"]["memory"]
    assert seeded["steps"] == -(-2 * count // 9) <= plan.steps == -(-2 * 20 * 2 // 9)
    assert set(seeded["trained"]) == ids(tmp_path / "run")[0] and "not_trained" not in read_json(
        tmp_path / "run" / "results.json"
    )


def test_a_killed_data_set_resumes_to_the_same_bits(model, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert sleep.main([*arguments(model, whole), "--no-report"]) == 0
    calls: Counter[str] = Counter()
    for name in ("write_about", "write_general"):
        function = getattr(generate_data, name)

        def counted(*args, function=function, name=name, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(generate_data, name, counted)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate_data, "write_general", interrupt)
        assert sleep.main([*arguments(model, killed), "--no-report"]) == 130
    assert calls == {"write_about": 2}
    assert sorted(path.name for path in (killed / "phases" / "write_dataset").glob("*.json")) == [
        "template-0-teacher-0.json",
        "template-1-teacher-0.json",
    ]
    assert sleep.main([*arguments(model, killed), "--no-report", "--resume"]) == 0
    assert calls == {"write_about": 2, "write_general": 1}
    assert written(killed) == written(whole) and not (killed / "phases" / "write_dataset").exists()
    assert read_ledger(killed / "ledger.jsonl")[0].fingerprint == read_ledger(whole / "ledger.jsonl")[0].fingerprint


@pytest.mark.parametrize(("rows", "expected"), [(1000, 40), (3, 12)])
def test_earlier_prompts_are_answered_as_far_as_they_are_replayed(model, tmp_path, rows, expected):
    first = tmp_path / "first"
    options = {"seeding.prompts_per_step": 8, "seeding.steps": rows, "dataset.earlier_share": 0.5}
    inputs = RunInputs(parse(arguments(model, tmp_path / "run", continue_from=first, **options)))
    inputs.earlier, inputs.consolidations, inputs.relearning = [], [], None
    prompts = [{"entry": f"entry-{n // 20}", "memory_id": str(n // 2), "prompt": str(n)} for n in range(40)]
    sample = Sample("memory", "m", "t", "p", [1], [1, 2], "r", [3])
    chosen = choose_prompts(inputs, prompts, [sample], seed=0)
    assert len(chosen) == expected and chosen == [row for row in prompts if row in chosen]
    assert len({row["memory_id"] for row in chosen}) == min(20, expected)
    assert len(set(Counter(row["entry"] for row in chosen).values())) == 1


def test_nights_auto_learns_all_documents_in_as_many_nights_as_it_takes(model, tmp_path, capsys):
    chain, file = tmp_path / "chain", tmp_path / "many.jsonl"
    write_jsonl(file, ({"id": str(n), "text": text} for n, text in enumerate(texts(40))))
    options = SHORT | {"seeding.steps": 2, "seeding.prompts_per_step": 10, "memory.max_experts": 4}
    kept = [word for word in arguments(model, chain, **options) if not word.startswith("--memories=")]
    words = [*kept, "--no-report", "--nights=auto", f"--memories={file}"]
    assert sleep.main([*words, "--dry_run"]) == 0
    planned = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "18 of 40 documents fit in these steps; the rest stays queued, for 2 more nights of this length" in planned
    assert sleep.main(words) == 0
    nights = sorted(path.name for path in chain.glob("night-*"))
    learned = ids(chain / nights[-1])
    assert len(nights) == len(learned) >= 3
    assert sum(map(len, learned)) == len(set.union(*learned))  # each document in one night
    left = {str(n) for n in range(40)} - set.union(*learned)
    assert "not_trained" not in read_json(chain / nights[-1] / "results.json") or left
    assert read_json(chain / nights[-1] / "results.json").get("not_trained", {}).get("queued", 0) == 0
    capsys.readouterr()
    assert sleep.main(words) == 0  # all finished: nothing runs again
    assert capsys.readouterr().err.count("is finished, skipping") == len(nights)


def test_the_chunk_of_level_0_divides_memories_into_nights(model, tmp_path, capsys):
    """As `sleep-trl schedule` says: a night for each boundary that 12 documents of 7 tokens pass."""
    chain, file = tmp_path / "chain", tmp_path / "many.jsonl"
    write_jsonl(file, ({"id": str(n), "text": text} for n, text in enumerate(texts(12))))
    options = SHORT | {"seeding.passes": 1, "memory.max_experts": 6, "levels.chunks": "28,280"}
    kept = [word for word in arguments(model, chain, **options) if not word.startswith(("--memories=", "--seeding.s"))]
    words = [*kept, "--no-report", "--nights=auto", f"--memories={file}"]
    assert sleep.main([*words, "--dry_run"]) == 0
    planned = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "4 of 12 documents fit in a chunk of 28 tokens; the rest stays queued, for 2 more nights" in planned
    assert sleep.main(words) == 0
    nights = sorted(chain.glob("night-*"))
    learned = ids(nights[-1])
    assert [len(night) for night in learned] == [4, 4, 4] and len(set.union(*learned)) == 12
    tokens = [entry.tokens for entry in read_ledger(nights[-1] / "ledger.jsonl")]
    assert [at for at, _ in Schedule((28, 280)).between(0, sum(tokens))] == [28, 56, 84] == list(accumulate(tokens))


def test_the_chunk_of_level_0_divides_a_wake_buffer_into_nights(model, tmp_path):
    wake = tmp_path / "wake.db"
    lines = [json.dumps({"id": str(n), "text": text}).encode() for n, text in enumerate(texts(10))]
    with WakeBuffer(wake) as buffer:
        buffer.add([record_of_line("in", line, "stream") for line in lines])
    options = SHORT | {"levels.chunks": "28,280", "memories": f"wake:{wake}"}
    plan = preflight(RunInputs(parse(arguments(model, tmp_path / "run", **options))))
    assert (plan.memories, plan.memory_tokens, plan.queued, plan.nights_after) == (4, 28, 6, 2)


def test_nights_auto_says_before_that_the_memory_has_no_room(model, tmp_path, capsys):
    file = tmp_path / "many.jsonl"
    write_jsonl(file, ({"id": str(n), "text": text} for n, text in enumerate(texts(40))))
    options = SHORT | {"seeding.steps": 2, "seeding.prompts_per_step": 10, "memory.max_experts": 2}
    kept = [word for word in arguments(model, tmp_path / "c", **options) if not word.startswith("--memories=")]
    assert sleep.main([*kept, "--nights=auto", f"--memories={file}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "40 memories take 3 nights of 2 steps, but the memory has room for 2 experts" in message
    without = [word for word in kept if not word.startswith("--seeding.steps=")]
    assert sleep.main([*without, "--nights=auto", f"--memories={file}"]) == 2
    assert "give --seeding.steps" in capsys.readouterr().err
    assert not list(tmp_path.glob("c/night-*/phases"))


def test_a_night_without_plotly_says_that_it_writes_no_report(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert sleep.main(arguments(model, tmp_path / "run", **{"seeding.steps": 1})) == 0
    assert "No report.html: plotly is not installed" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "results.json").exists()
