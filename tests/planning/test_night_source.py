"""Nights from a wake buffer: a record is learned once, wherever the night is stopped and whatever arrives meanwhile."""

import html
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from sleep_trl.daemon import PendingRecords
from sleep_trl.distributed.progress import StepBar
from sleep_trl.launch import sleep
from sleep_trl.night.context import NightContext
from sleep_trl.night.generate_data import write_dataset
from sleep_trl.runs.files import read_json
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer, record_of_line
from tests.night.test_run import TEXTS, arguments


def ingest(path: Path, *texts: str) -> None:
    with WakeBuffer(path) as buffer:
        lines = [json.dumps({"id": f"record {text[:14]}", "text": text}).encode() for text in texts]
        assert buffer.add([record_of_line("in", line, "stream") for line in lines]).added == len(texts)


def states(path: Path) -> list[str]:
    with WakeBuffer(path) as buffer:
        return [f"{record.state} {record.detail}".strip() for record in buffer.records()]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_every_record_is_learned_once(model, tmp_path, monkeypatch, capsys):
    wake, first, second = tmp_path / "wake.db", tmp_path / "night1", tmp_path / "night2"
    ingest(wake, TEXTS[0])
    night = arguments(model, first, **{"memories": f"wake:{wake}"})
    with monkeypatch.context() as patch:  # stopped in the middle
        patch.setattr(StepBar, "on_step_end", interrupt)
        assert sleep.main(night) == 130
    assert states(wake) == ["new"]
    ingest(wake, "the boat of Tolu sleeps")  # and another record arrives
    with monkeypatch.context() as patch:  # stopped again, when the ledger is written and nothing behind it
        patch.setattr("sleep_trl.night.run.collect_results", interrupt)
        assert sleep.main([*night, "--resume"]) == 130
    assert not (first / "results.json").exists()
    assert states(wake) == ["consolidated entry-001", "new"]
    assert sleep.main([*night, "--resume"]) == 0
    (entry,) = read_ledger(first / "ledger.jsonl")
    assert [source.id for source in entry.sources] == ["record the cat of Mir"]
    assert sleep.main(arguments(model, second, memories=f"wake:{wake}", continue_from=first)) == 0
    assert [source.id for source in read_ledger(second / "ledger.jsonl")[1].sources] == ["record the boat of To"]
    assert states(wake) == ["consolidated entry-001", "consolidated entry-002"]
    capsys.readouterr()
    assert sleep.main(arguments(model, tmp_path / "night3", memories=f"wake:{wake}", continue_from=second)) == 2
    assert "holds nothing new (0 new, 2 consolidated" in capsys.readouterr().err
    assert sleep.main(arguments(model, tmp_path / "night3", memories=f"wake:{tmp_path / 'absent.db'}")) == 2
    assert "there is no wake buffer" in capsys.readouterr().err


def test_a_night_that_was_killed_as_it_began_begins_again(model, tmp_path, monkeypatch):
    wake, folder = tmp_path / "wake.db", tmp_path / "night1"
    ingest(wake, TEXTS[0])
    night = arguments(model, folder, memories=f"wake:{wake}")
    with monkeypatch.context() as patch:  # its records are stored, its config.json is not
        patch.setattr("sleep_trl.night.run.write_json", interrupt)
        assert sleep.main(night) == 130
    assert {path.name for path in folder.rglob("*")} == {"phases", "ingested.jsonl", "began.json", "checksums.sha256"}
    assert sleep.main([*night, "--dry_run"]) == 0


def test_a_record_about_which_nothing_usable_was_written_fails(model, tmp_path, monkeypatch):
    wake, folder = tmp_path / "wake.db", tmp_path / "night1"
    ingest(wake, TEXTS[0], "the boat of Tolu sleeps")
    unused = "record the boat of To"

    def write(ctx: NightContext) -> dict:
        written = write_dataset(ctx)
        return written | {"samples": [row for row in written["samples"] if row["memory_id"] != unused]}

    with monkeypatch.context() as patch:
        patch.setattr("sleep_trl.night.run.write_dataset", write)
        assert sleep.main(arguments(model, folder, memories=f"wake:{wake}")) == 0
    (entry,) = read_ledger(folder / "ledger.jsonl")
    assert [source.id for source in entry.sources] == ["record the cat of Mir"]
    assert states(wake) == ["consolidated entry-001", f"failed nothing usable was written about it in {folder}"]
    with WakeBuffer(wake) as buffer:
        line = json.dumps({"text": "the boat of Tolu sleeps"}).encode()
        assert buffer.add([record_of_line("in", line, "stream")]).duplicates == 1
    assert states(wake) == ["consolidated entry-001", "new"]  # a record that arrives again is tried again


def test_a_night_without_usable_samples_does_not_block_the_chain(model, tmp_path, capsys):
    wake, folder = tmp_path / "wake.db", tmp_path / "life"
    ingest(wake, TEXTS[0])
    given = arguments(model, folder, **{"dataset.templates": '["paraphrase"]', "dataset.general_share": 0})
    words = [word for word in given if not word.startswith("--memories=")] + [f'--nights=["wake:{wake}"]']
    assert sleep.main([*words, "--dataset.max_new_tokens=1", "--no-dataset.keep_truncated"]) == 2
    printed = capsys.readouterr().err
    assert (
        "Error: The teacher wrote nothing usable" in printed
        and f"its files are in {folder / 'quarantined-001'}." in printed
    )
    assert states(wake) == ["new"] and not (folder / "night-001").exists()
    pending = PendingRecords(wake, chain=folder)
    assert pending.count().records == 0
    ingest(wake, "the boat of Tolu sleeps")
    assert pending.count().records == 1
    assert sleep.main(words) == 0
    assert set(states(wake)) == {"consolidated entry-001"}


def test_a_night_that_costs_too_much_is_rolled_back(model, tmp_path, capsys):
    wake, first, second = tmp_path / "wake.db", tmp_path / "night1", tmp_path / "night2"
    ingest(wake, TEXTS[0])
    ruinous = {"retention.max_skill_loss": 0.01, "seeding.learning_rate": 1.0}
    assert sleep.main(arguments(model, first, memories=f"wake:{wake}", **ruinous)) == 0
    assert "rolled back" in capsys.readouterr().out
    (entry,) = read_ledger(first / "ledger.jsonl")
    assert entry.dropped and entry.rolled_back and "the agreement with the base fell from 100.0 to" in entry.rolled_back
    results = read_json(first / "results.json")
    assert results["rolled_back"] == entry.rolled_back and results["parameters"]["added"] == 0
    assert entry.rolled_back in html.unescape((first / "report.html").read_text("utf-8"))
    base, left = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, first / "model"))
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), left.parameters(), strict=True))
    assert states(wake) == ["new"]
    assert sleep.main(arguments(model, second, memories=f"wake:{wake}", continue_from=first)) == 0
    assert states(wake) == ["consolidated entry-002"]
    assert read_json(second / "results.json")["chain"]["entries"] == ["entry-002"]
