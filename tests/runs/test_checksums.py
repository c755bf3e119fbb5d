"""A flipped bit is noticed wherever a run is read. A kill while a file is replaced leaves none that seems damaged."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sleep_trl.memory import load_memory
from sleep_trl.memory.accumulated_gradients import Accumulated
from sleep_trl.planning.capacity import find_capacity
from sleep_trl.planning.night_source import began_with
from sleep_trl.publish.export import export
from sleep_trl.publish.unlearn import drop
from sleep_trl.runs import checksums
from sleep_trl.runs.checksums import NAME, Damaged, check_folder, record_folder
from sleep_trl.runs.files import read_json, read_jsonl, write_json, write_jsonl
from sleep_trl.runs.finished import FinishedRun, newest_model
from sleep_trl.runs.folder import RunFolder
from sleep_trl.runs.phases import Phases
from tests.publish.three_nights import write_run
from tests.tiny import tiny_model
from tests.tiny_runs import write_model


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    base = write_model(tmp_path_factory.mktemp("base") / "model")
    run = write_run(tmp_path_factory.mktemp("runs"), base)
    for name in ("model", "adapter"):
        record_folder(run / name)  # as a night does
    return run


@pytest.fixture
def run(template, tmp_path) -> Path:
    return shutil.copytree(template, tmp_path / "run")


def flip(path: Path, at: float = 0.5) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def continue_(run: Path) -> None:
    """Read what a next night reads of a run."""
    FinishedRun.read(run)
    load_memory(tiny_model(), run / "adapter")
    for name in ("prompts.jsonl", "questions.jsonl"):
        list(read_jsonl(run / "adapter" / name))


READ_BY_A_NIGHT = [f"adapter/{name}" for name in ("experts.safetensors", "memory.json", "prompts.jsonl")]
READ_BY_A_NIGHT += ["adapter/questions.jsonl", "ledger.jsonl"]
READ_BY_EXPORTS = {
    "checkpoint": ["model/model.safetensors", "model/config.json", "model/tokenizer.json", "ledger.jsonl"],
    "adapter": ["adapter/experts.safetensors", "adapter/memory.json", "ledger.jsonl"],
}


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", READ_BY_A_NIGHT)
def test_a_night_does_not_continue_a_damaged_run(run, name, at):
    continue_(run)
    flip(run / name, at)
    with pytest.raises(ValueError, match=rf"{name} (is damaged|is not UTF-8|is not valid)") as raised:
        continue_(run)
    assert not isinstance(raised.value, Damaged) or "Restore it from a copy" in str(raised.value)


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, names in READ_BY_EXPORTS.items() for name in names])
def test_an_export_copies_nothing_damaged(run, tmp_path, form, name):
    flip(run / name)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        export(run, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_server_starts_with_no_damaged_model(run):
    check_folder(newest_model(run).path)
    (run / "model" / "generation_config.json").unlink()
    with pytest.raises(Damaged, match=r"model/generation_config\.json is missing"):
        check_folder(newest_model(run).path)


def test_a_resumed_night_reads_nothing_damaged(tmp_path):
    phases = Phases(tmp_path / "phases")
    assert phases.once("seed", lambda: {"history": [0.5] * 9}) == {"history": [0.5] * 9}
    flip(tmp_path / "phases" / "seed.json", 0.6)
    with pytest.raises(Damaged, match=r"phases/seed\.json is damaged"):
        phases.once("seed", dict)
    run = RunFolder(tmp_path)
    write_jsonl(run.ingested, [{"id": "a", "source": "s", "text": "the cat of Mira"}], is_checked=True)
    assert began_with(tmp_path)
    run.ingested.write_text(run.ingested.read_text().replace("cat", "car"))
    with pytest.raises(Damaged, match=r"ingested\.jsonl is damaged"):
        began_with(tmp_path)
    Accumulated({1: 3}, {}).save(tmp_path / "phases" / "accumulated")
    flip(tmp_path / "phases" / "accumulated" / "accumulated.safetensors")
    with pytest.raises(Damaged, match=r"accumulated\.safetensors is damaged"):
        Accumulated.load(tmp_path / "phases" / "accumulated")
    Accumulated().save(tmp_path / "phases" / "accumulated")
    assert (tmp_path / "phases" / "accumulated" / NAME).read_text() == ""


def test_the_hashes_are_those_of_sha256sum(run):
    for folder in (run, run / "adapter", run / "model"):
        subprocess.run(["sha256sum", "--check", "--strict", NAME], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def test_a_run_without_hashes_is_read_and_mentioned_once(run, caplog):
    for path in run.rglob(NAME):
        path.unlink()
    for _ in range(2):
        continue_(run)
    assert [record.message for record in caplog.records] == [
        f"{run} has no checksums.sha256, so damage to its files would not be noticed."
    ]
    assert drop(FinishedRun.read(run), ["entry-003"]).entries == ("entry-003",)
    check_folder(run / "adapter")
    assert "memory.json" in (run / "adapter" / NAME).read_text()


def test_a_file_that_was_changed_on_purpose_is_read_without_its_line(run):
    config = run / "adapter" / "memory.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(Damaged, match=r"If you changed it yourself, remove its line there"):
        read_json(config)
    path = run / "adapter" / NAME
    path.write_text("".join(line for line in path.open() if "memory.json" not in line))
    read_json(config)


@pytest.mark.parametrize("kill_at", range(4))
def test_a_kill_while_a_file_is_replaced_leaves_a_good_one(tmp_path, monkeypatch, kill_at):
    """Before any exchange of files: of the hashes, of the file, of the hashes again."""
    path, exchange, left = tmp_path / "a.json", Path.replace, kill_at
    write_json(path, 1, is_checked=True)

    def killed(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return exchange(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        try:
            write_json(path, 2, is_checked=True)
        except KeyboardInterrupt:
            assert kill_at < 3
    assert read_json(path) == (1 if kill_at < 2 else 2)
    write_json(path, 3)
    assert read_json(path) == 3 and (tmp_path / NAME).read_text().count("a.json") == 1
    path.write_text("1\n")
    with pytest.raises(Damaged):
        read_json(path)


def test_weights_and_folders_are_on_disk_before_their_hashes(template, tmp_path, monkeypatch):
    done: list[Path | str] = []
    sync, write = os.fsync, checksums._write

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def written(folder: Path, found: checksums.Checksums) -> None:
        done.append("hashes")
        write(folder, found)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checksums, "_write", written)
    folder = shutil.copytree(template / "model", tmp_path / "model")
    record_folder(folder)
    files = {path for path in folder.iterdir() if path.name != NAME}
    assert set(done[: done.index("hashes")]) == files
    assert done[-2:] == [folder, tmp_path]
    done.clear()
    write_json(tmp_path / "a.json", 1)
    assert done == [tmp_path / "a.json.partial", tmp_path]


def test_capacity_names_a_damaged_ledger(run, tmp_path):
    from sleep_trl.config import RunConfig

    (run / "ledger.jsonl").write_text("")
    for path in (run / NAME,):
        path.unlink()
    with pytest.raises(ValueError, match=r"ledger\.jsonl is empty, but every night writes a line\. Restore it"):
        find_capacity(RunConfig(model="-", memories="-", continue_from=run))
