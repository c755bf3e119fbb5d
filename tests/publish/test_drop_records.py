"""What a dropped entry had learned: which records are pending again, follow the ledger, or are lost."""

from __future__ import annotations

import json
import shutil

from sleep_trl.publish.unlearn import drop
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.finished import FinishedRun
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer, WakeRecord
from tests.publish.three_nights import NIGHTS


def states(buffer: WakeBuffer) -> dict[str, str]:
    return {record.id: f"{record.state} {record.detail}".strip() for record in buffer.records()}


def test_forgetting_a_source_drops_what_holds_it_and_queues_the_rest(run, tmp_path):
    """The buffer does not have these records; their texts come from the file that the run read."""
    names = [entry.id for entry in run.holding("contract-17.pdf")]
    assert names == ["entry-001", "entry-002"]
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        done = drop(run, names, buffer, without="contract-17.pdf", later="keep")
        assert (done.queued, done.lost) == (("a", "d"), ())
        assert states(buffer) == {"a": "new", "d": "new"}
        assert [memory.text for memory in buffer.memories()] == ["the cat of Mira", "the boat sleeps"]


def test_records_of_the_buffer_follow_the_ledger(run, tmp_path):
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.add([WakeRecord(memory, "2026-07-10") for memories in NIGHTS for memory in memories])
        buffer.register(run.folder)
        buffer.settle()
        first, second, third = (f"consolidated entry-00{number}" for number in (1, 2, 3))
        assert states(buffer) == {"a": first, "b": first, "c": second, "d": second, "e": third}
        drop(run, ["entry-001", "entry-002"], buffer, without="contract-17.pdf", later="keep")
        assert states(buffer) == {"a": "new", "b": "forgotten", "c": "forgotten", "d": "new", "e": third}


def test_a_buffer_that_follows_a_later_run_keeps_following_it(run, tmp_path):
    later = tmp_path / "runs" / "night4"
    shutil.copytree(run.folder, later)
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.register(later)
        done = drop(run, ["entry-002"], buffer, later="keep")
        assert buffer.run() == later and done.queued == ()
        assert states(buffer) == {"c": "consolidated entry-002", "d": "consolidated entry-002"}


def test_a_buffer_that_follows_an_earlier_run_follows_this_one_then(run, tmp_path):
    later = tmp_path / "runs" / "night4"
    shutil.copytree(run.folder, later)
    write_json(later / "config.json", read_json(run.folder / "config.json") | {"continue_from": str(run.folder)})
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        buffer.register(run.folder)
        assert drop(FinishedRun.read(later), ["entry-003"], buffer).queued == ("e",)
        assert buffer.run() == later and states(buffer) == {"e": "new"}


def test_records_without_text_are_reported(run, tmp_path):
    (run.folder.parent / "memories.jsonl").write_text(json.dumps({"id": "d", "text": "the boat sleeps"}) + "\n")
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        done = drop(run, ["entry-002"], buffer, later="keep")
    assert (done.queued, done.lost) == (("d",), ("c",))


def test_earlier_runs_with_the_entry_are_reported(run, base, tmp_path):
    later = tmp_path / "runs" / "night4"
    shutil.copytree(run.folder, later)
    write_json(later / "config.json", read_json(run.folder / "config.json") | {"continue_from": str(run.folder)})
    done = drop(FinishedRun.read(later), ["entry-003"])
    assert done.also_in == (run.folder,)
    assert read_ledger(run.folder / "ledger.jsonl")[2].dropped is None
