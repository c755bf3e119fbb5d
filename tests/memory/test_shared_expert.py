"""Unlearning with a shared expert: entries consolidated into one are disabled, enabled and dropped together."""

from __future__ import annotations

import shutil

import pytest

from sleep_trl.cli import main
from sleep_trl.memory import ExpertRecord, fold, save_memory
from sleep_trl.publish.unlearn import drop, set_enabled
from sleep_trl.runs.files import read_jsonl
from sleep_trl.runs.finished import FinishedRun, describe
from sleep_trl.runs.ledger import read_ledger, write_ledger
from sleep_trl.wake import WakeBuffer, WakeRecord
from tests.publish.test_unlearn import is_same, model_of, weights
from tests.publish.three_nights import NIGHTS, filled, write_run


@pytest.fixture
def run(model, tmp_path) -> FinishedRun:
    """Three nights, the first two of which are one expert now; it is expert 2, and the third night's has slot 0."""
    folder = write_run(tmp_path, model)
    first, second, third = read_ledger(folder / "ledger.jsonl")
    memory = filled((0, 2))
    memory.records[2] = ExpertRecord(2, level=2)
    save_memory(memory, folder / "adapter")
    fold(memory, folder / "model")
    both = {"holds": (first.id, second.id), "sources": first.sources + second.sources}
    promoted = third.model_copy(update={"id": "entry-003", "expert": 2, "level": 2, "parents": (), **both})
    third = third.model_copy(update={"id": "entry-004", "expert": 0, "parents": ("entry-003",)})
    write_ledger(folder / "ledger.jsonl", [first, second, promoted, third])
    for path in (folder / "adapter" / name for name in ("prompts.jsonl", "questions.jsonl")):
        path.write_text(path.read_text().replace("entry-003", "entry-004"))
    shutil.rmtree(folder / "dream_adapter")
    return FinishedRun.read(folder)


@pytest.mark.parametrize("name", ["entry-001", "entry-003"])
def test_dropping_one_that_was_taken_in_drops_all_of_its_expert(run, tmp_path, name) -> None:
    with pytest.raises(ValueError, match=r"depend on entry-001, entry-002, entry-003 in .*: entry-004"):
        drop(run, [name])
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        done = drop(run, [name], buffer, later="keep")
    assert done.entries == ("entry-001", "entry-002", "entry-003") and done.queued == ("a", "b", "c", "d")
    after = FinishedRun.read(run.folder)
    assert [after.state(e) for e in after.entries] == ["dropped", "dropped", "dropped", "enabled"]
    assert is_same(weights(run.folder / "model"), model_of((0,), tmp_path / "expected"))
    assert {row["entry"] for row in read_jsonl(run.folder / "adapter" / "prompts.jsonl")} == {"entry-004"}


def test_forgetting_a_source_queues_the_rest_of_a_shared_expert(run, tmp_path) -> None:
    names = [e.id for e in run.holding("contract-17.pdf")]
    assert names == ["entry-001", "entry-002"]
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        assert drop(run, names[:1], buffer, without="contract-17.pdf", later="keep").queued == ("a", "d")


def test_dependents_of_a_shared_expert_are_found(run) -> None:
    assert run.dependents_of(["entry-004"]) == []
    changed = [e.model_copy(update={"parents": ("entry-004",)}) if e.holds else e for e in run.entries]
    later = FinishedRun(run.folder, tuple(changed), run.enabled)
    assert later.dependents_of(["entry-004"]) == ["entry-001", "entry-002", "entry-003"]


def test_a_shared_expert_is_disabled_and_enabled_as_one(run, tmp_path, capsys) -> None:
    def call(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        return ended.value.code, *capsys.readouterr()

    assert [describe(run, e)["into"] for e in run.entries] == ["entry-003", "entry-003", None, None]
    assert [describe(run, e)["level"] for e in run.entries] == [2, 2, 2, 1]
    before = weights(run.folder / "model")
    code, out, err = call("memory", "disable", run.folder, "entry-002")
    assert not code and out == "entry-003 is disabled.\n"
    assert "Also disabled, because they share an expert with entry-002: entry-001, entry-003." in err
    assert is_same(weights(run.folder / "model"), model_of((0,), tmp_path / "expected"))
    listed = call("memory", "list", run.folder)[1]
    assert listed.count("in entry-003") == 2 and listed.count("disabled") == 1
    assert "holds        entry-001, entry-002" in call("memory", "show", run.folder, "entry-003")[1]
    assert "entry-001: consolidated in entry-003\n" in call("memory", "show", run.folder, "entry-001")[1]
    with pytest.raises(ValueError, match="entry-003 is already disabled"):
        set_enabled(FinishedRun.read(run.folder), run.entry("entry-001"), False)
    set_enabled(FinishedRun.read(run.folder), run.entry("entry-001"), True)
    assert is_same(weights(run.folder / "model"), before)


def test_a_record_stays_with_the_night_that_learned_it(run, tmp_path) -> None:
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([WakeRecord(memory, "2026-07-10") for memories in NIGHTS for memory in memories])
        buffer.register(run.folder)
        buffer.settle()
        details = [record.detail for record in buffer.records()]
    assert details == ["entry-001", "entry-001", "entry-002", "entry-002", "entry-004"]
