"""Pending records: tokens of the model, each record once, without those of a night that was rolled back."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sleep_trl.daemon import Pending, PendingRecords, load_tokenizer
from sleep_trl.runs.files import write_jsonl
from sleep_trl.runs.ledger import Source, read_ledger, write_ledger
from sleep_trl.wake import WakeBuffer, record_of_line
from tests.tiny import tiny_tokenizer
from tests.tiny_runs import write_finished_run
from tests.wake.test_buffer import flip

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"


def ingest(path: Path, *texts: str) -> None:
    with WakeBuffer(path) as buffer:
        buffer.add([record_of_line("in", json.dumps({"text": text}).encode(), "s") for text in texts])


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return load_tokenizer(str(tmp_path / "model"))


def test_tokens_are_counted_by_the_models_tokenizer(tmp_path):
    text = "Mira has a goat. It is called Tolu, and eats hats.\n" * 40
    expected = len(AutoTokenizer.from_pretrained(QUICKSTART)(text, add_special_tokens=False)["input_ids"])
    ingest(tmp_path / "wake.db", text)
    assert PendingRecords(tmp_path / "wake.db", load_tokenizer(str(QUICKSTART))).count() == Pending(1, expected)


def test_new_records_count(tmp_path, tokenizer):
    path = tmp_path / "wake.db"
    pending = PendingRecords(path, tokenizer)
    assert pending.count() == Pending(0, 0) and path.is_file()
    ingest(path, "the cat of Mira", "it eats hats")
    assert pending.count() == Pending(2, 7)
    ingest(path, "the cat of Mira", "the boat")
    assert pending.count() == Pending(3, 9)
    with WakeBuffer(path) as buffer:
        buffer.forget("s")
    assert pending.count() == Pending(0, 0)
    ingest(path, "Ben sleeps")
    assert PendingRecords(path).count() == Pending(1, None)


def test_records_of_a_rolled_back_night_do_not_count(tmp_path, tokenizer):
    path = tmp_path / "wake.db"
    ingest(path, "the cat of Mira", "it eats hats")
    run = write_finished_run(tmp_path / "night-001")
    (entry,) = read_ledger(run / "ledger.jsonl")
    with WakeBuffer(path) as buffer:
        sources = tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in buffer.memories())
        buffer.register(run)
    undone = {"sources": sources, "dropped": entry.date, "rolled_back": "the base skill fell"}
    write_ledger(run / "ledger.jsonl", [entry.model_copy(update=undone)])
    pending = PendingRecords(path, tokenizer)
    assert pending.count() == Pending(0, 0)
    ingest(path, "the boat")
    assert pending.count() == Pending(1, 2)
    write_ledger(run / "ledger.jsonl", [entry.model_copy(update=undone | {"rolled_back": None})])
    assert pending.count() == Pending(3, 9), "records that a user drops are pending again"


@pytest.mark.parametrize("ledger", ["", '{"id": '])
def test_a_damaged_ledger_and_a_damaged_text_stop_no_counting(tmp_path, ledger):
    path = tmp_path / "wake.db"
    ingest(path, "the cat of Mira", "it eats hats")
    run = write_finished_run(tmp_path / "night-001")
    with WakeBuffer(path) as buffer:
        buffer.register(run)
    (run / "ledger.jsonl").write_text(ledger)
    flip(path, "it eats hats")
    assert PendingRecords(path).count().records == 1
    with WakeBuffer(path) as buffer:
        assert (buffer.counts()["new"], buffer.counts()["failed"]) == (1, 1)


@pytest.mark.parametrize(("folder", "file"), [("quarantined-001", "ingested.jsonl"), ("aside-001", "heard.jsonl")])
def test_records_of_a_quarantined_night_do_not_count(tmp_path, tokenizer, folder, file):
    """The second pair are the names that 0.1 gave."""
    ingest(tmp_path / "wake.db", "the cat of Mira")
    row = {"id": "a", "source": "s", "text": "the cat of Mira"}
    write_jsonl(tmp_path / "chain" / folder / "phases" / file, [row])
    assert PendingRecords(tmp_path / "wake.db", tokenizer, tmp_path / "chain").count() == Pending(0, 0)
    assert PendingRecords(tmp_path / "wake.db", tokenizer).count() == Pending(1, 4)


@pytest.mark.parametrize("name", ["empty", "broken"])
def test_a_model_without_tokenizer_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{name} has no tokenizer.json .* or use --at without --after_tokens"):
        load_tokenizer(str(tmp_path / name))


def test_a_buffer_that_did_not_change_is_not_read_again(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "wake.db"
    ingest(path, "the cat of Mira")
    pending, opened = PendingRecords(path, tokenizer), list[Path]()
    count = PendingRecords._count

    def counted(self: PendingRecords) -> Pending:
        opened.append(self.path)
        return count(self)

    monkeypatch.setattr(PendingRecords, "_count", counted)
    assert {pending.count() for _ in range(20)} == {Pending(1, 4)} and len(opened) <= 2
    with WakeBuffer(path) as writer:  # it stays open, as that of `serve`
        writer.add([record_of_line("in", b'{"text": "the boat"}', "s")])
        assert pending.count() == Pending(2, 6)
        before = len(opened)
        assert [pending.count() for _ in range(5)] == [Pending(2, 6)] * 5 and len(opened) <= before + 1
        writer.add([record_of_line("in", b'{"text": "Ben sleeps"}', "s")])
        assert pending.count() == Pending(3, 8)
