"""What was forgotten does not come back: a night that began before it starts over, at whatever phase it was stopped."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from sleep_trl.cli import main
from sleep_trl.config import RunConfig
from sleep_trl.distributed.progress import StepBar
from sleep_trl.launch import sleep
from sleep_trl.memory.storage import read_description
from sleep_trl.planning.begun import Changed, changes, night_lock, record_beginning, start_over
from sleep_trl.planning.night_source import began_with, begin_night
from sleep_trl.planning.output_dir import check_output
from sleep_trl.publish.unlearn import drop
from sleep_trl.runs.checksums import check_folder
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.finished import FinishedRun
from sleep_trl.runs.ledger import Source, read_ledger, write_ledger
from sleep_trl.runs.lock import RunInUse, run_lock
from sleep_trl.wake import WakeBuffer, record_of_text
from tests.night.test_run import arguments, finished  # noqa: F401  (a fixture)
from tests.tiny_runs import write_finished_run

STAGES = ["phases/evaluate_before.json", "phases/write_dataset.json", "checkpoints/checkpoint-2/x", "phases/seed.json"]
STAGES += [
    "phases/evaluate_after.json",
    "adapter/memory.json",
    "model/config.json",
    "ledger.jsonl",
    "phases/commit.json",
]
HIDDEN = (".lock", "checksums.sha256")
SECRET = "the boat of Ben sleeps"


def ingest(path: Path, *texts: str, source: str = "s") -> None:
    with WakeBuffer(path) as buffer:
        buffer.add([record_of_text(source, text.encode(), source) for text in texts])


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture
def begun(tmp_path) -> RunConfig:
    """A night about two records that continues another; its files are written by the test."""
    run = write_finished_run(tmp_path / "chain" / "night-001")
    ingest(tmp_path / "wake.db", "the cat of Mira")
    ingest(tmp_path / "wake.db", SECRET, source="secret")
    config = RunConfig(
        model="model",
        memories=f"wake:{tmp_path / 'wake.db'}",
        continue_from=run,
        output_dir=tmp_path / "chain" / "night-002",
        resume=True,
    )
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        memories = buffer.memories()
    begin_night(config, memories)
    record_beginning(config, memories)
    write_json(config.output_dir / "config.json", config.model_dump(mode="json"))
    return config


def write_up_to(config: RunConfig, stage: str) -> None:
    for name in STAGES[: STAGES.index(stage) + 1]:
        path = config.output_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
        if name == "ledger.jsonl":
            assert config.continue_from
            (first,) = read_ledger(config.continue_from / name)
            sources = tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in began_with(config.output_dir))
            write_ledger(path, [first, first.model_copy(update={"id": "entry-002", "sources": sources})])


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name not in HIDDEN
    }


def change_ledger(run: Path) -> None:
    (entry,) = read_ledger(run / "ledger.jsonl")
    write_ledger(run / "ledger.jsonl", [entry.model_copy(update={"dropped": entry.date})])


def change_state(run: Path) -> None:
    description = read_json(run / "adapter" / "memory.json")
    description["experts"][0]["is_enabled"] = False
    write_json(run / "adapter" / "memory.json", description)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("change", [change_ledger, change_state])
def test_a_night_starts_over_if_the_run_it_continues_was_changed(begun, stage, change, capsys):
    write_up_to(begun, stage)
    with night_lock(begun):
        assert STAGES[0] in files_of(begun.output_dir), "nothing has changed yet"
    change(begun.continue_from)
    with night_lock(begun):
        assert files_of(begun.output_dir) == {"config.json", "phases/ingested.jsonl"}
    assert "starts over, because an entry of" in " ".join(capsys.readouterr().out.split())
    with WakeBuffer(begun.source.buffer) as buffer:
        assert buffer.counts()["new"] == 2


@pytest.mark.parametrize("stage", STAGES)
def test_forgetting_reaches_a_night_that_was_begun(begun, stage, capsys):
    write_up_to(begun, stage)
    assert call("wake", "forget", "secret", "--buffer", begun.source.buffer, "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["erased"] == [str(begun.output_dir)] and row["forgotten"] == 1
    assert not [path for path in begun.output_dir.rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert [memory.text for memory in began_with(begun.output_dir)] == ["the cat of Mira"]


@pytest.mark.parametrize(
    "name", ["config.json.partial", "phases/ingested.jsonl.partial", "phases/checksums.sha256.partial"]
)
def test_forgetting_removes_what_a_killed_write_left(begun, name, capsys):
    """Of the night, or of a forgetting before this one, which had erased all the rest."""
    words = ("wake", "forget", "secret", "--buffer", begun.source.buffer, "--json")
    call(*words)
    (begun.output_dir / name).write_text(SECRET)
    assert call(*words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["erased"] == []
    assert not list(begun.output_dir.rglob("*.partial"))


@pytest.mark.parametrize("stage", ["adapter/memory.json", "phases/commit.json"])
def test_a_night_that_was_killed_while_it_started_over_can_be_resumed(begun, stage, tmp_path, monkeypatch):
    """Killed before any removal or exchange of a file. No file seems to be missing, and nothing forgotten is left."""
    write_up_to(begun, stage)
    write_json(begun.output_dir / "phases" / "evaluate_before.json", SECRET, is_checked=True)
    with WakeBuffer(begun.source.buffer) as buffer:
        buffer.forget("secret")
    changes_of_files = 0

    def killed(original, limit: int):
        def change(*given: object, **options: object) -> object:
            nonlocal changes_of_files
            changes_of_files += 1
            if changes_of_files > limit:
                raise KeyboardInterrupt
            return original(*given, **options)

        return change

    for limit in range(100):
        changes_of_files, night = 0, shutil.copytree(begun.output_dir, tmp_path / "copies" / str(limit))
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", killed(Path.unlink, limit))
            patch.setattr(Path, "replace", killed(Path.replace, limit))
            patch.setattr(shutil, "rmtree", killed(shutil.rmtree, limit))
            start_over(night, lambda memory: memory.text == SECRET)
        is_done = changes_of_files <= limit
        check_folder(night)
        check_folder(night / "phases")
        resumed = begun.model_copy(update={"output_dir": night})
        with night_lock(resumed):
            record_beginning(resumed, began_with(night))
        assert files_of(night) == {"config.json", "phases/ingested.jsonl", "phases/began.json"}
        assert not any(SECRET in (night / name).read_text() for name in files_of(night))
        if is_done:
            break
    assert is_done and limit > 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_night_in_progress_starts_over_without_what_was_forgotten(begun, stage, capsys):
    """Forgetting does not wait for it. The night finds out before its next phase, or when it is resumed."""
    write_up_to(begun, stage)
    with run_lock(begun.output_dir):
        assert call("wake", "forget", "secret", "--buffer", begun.source.buffer, "--json") == 75
        output = capsys.readouterr()
        assert json.loads(output.out)["in_use"] == [str(begun.output_dir)] and "is in use by process" in output.err
        assert changes(begun) == "1 of its records was forgotten"
    with night_lock(begun):
        assert files_of(begun.output_dir) == {"config.json", "phases/ingested.jsonl"}
        assert [memory.text for memory in began_with(begun.output_dir)] == ["the cat of Mira"]


def test_a_night_of_which_all_is_forgotten_is_removed(begun):
    for source in ("s", "secret"):
        with WakeBuffer(begun.source.buffer) as buffer:
            buffer.forget(source)
    with pytest.raises(Changed, match=r"All records of the night .* were forgotten"), night_lock(begun):
        pass
    assert files_of(begun.output_dir) == set()
    check_output(begun.model_copy(update={"resume": False}))  # the next night takes its number


def test_two_nights_do_not_work_in_one_folder(begun, place, capsys):
    words = ["--model=model", "--memories=docs.jsonl", f"--output_dir={place / 'run'}"]
    with run_lock(place / "run"):
        assert sleep.main(words) == 75
    assert re.search(r"run is in use by process \d+ \(.*\)\. Wait until it ends", capsys.readouterr().err)
    with run_lock(begun.continue_from), pytest.raises(RunInUse, match="night-001 is in use"), night_lock(begun):
        pass


def test_memories_that_changed_since_a_night_began_are_refused(begun):
    with pytest.raises(ValueError, match=r"has changed since the night .* began\. Restore it to resume"):
        record_beginning(begun, began_with(begun.output_dir)[:1])


def test_a_dropped_entry_does_not_come_back_with_a_resumed_night(model, finished, monkeypatch, capsys):  # noqa: F811
    """Killed while it trains. Before, the resumed night folded the dropped expert in and failed for ever."""
    runs = finished.parent / "dropped"
    first, second = shutil.copytree(finished, runs / "first"), runs / "second"
    night = arguments(model, second, "two", continue_from=first)

    def stop(*_: object, **__: object) -> None:
        with pytest.raises(RunInUse, match="first is in use by process"):
            drop(FinishedRun.read(first), ["entry-001"])
        with pytest.raises(RunInUse, match="second is in use by process"), run_lock(second):
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", stop)
        assert sleep.main(night) == 130
    assert drop(FinishedRun.read(first), ["entry-001"]).erased == (second,)
    assert sleep.main([*night, "--resume"]) == 0
    entries = read_ledger(second / "ledger.jsonl")
    assert entries[0].dropped and entries[1].parents == ()
    assert [expert["index"] for expert in read_description(second / "adapter")["experts"]] == [entries[1].expert]


def test_a_record_forgotten_during_a_night_is_in_no_entry(model, tmp_path, monkeypatch, capsys):
    wake, folder = tmp_path / "wake.db", tmp_path / "night"
    ingest(wake, "the cat of Mira is called Tolu and it eats hats.")
    ingest(wake, SECRET, source="secret")
    night = arguments(model, folder, memories=f"wake:{wake}")

    def forget(*_: object, **__: object) -> None:
        with WakeBuffer(wake) as buffer:
            buffer.forget("secret")

    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_train_end", forget)
        assert sleep.main(night) == 75
    assert "stops, because 1 of its records was forgotten" in capsys.readouterr().err
    assert not (folder / "ledger.jsonl").exists()
    assert sleep.main([*night, "--resume"]) == 0
    (entry,) = read_ledger(folder / "ledger.jsonl")
    assert [source.source for source in entry.sources] == ["s"]
    assert SECRET not in "".join(path.read_text() for path in (folder / "phases").rglob("*.json*"))
