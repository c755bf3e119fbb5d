"""The names of a run's files are written once."""

from pathlib import Path

from sleep_trl.runs.folder import NIGHT, RunFolder, night_folder

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "sleep_trl" / "runs" / "folder.py"


def test_no_other_module_writes_the_names_of_folders():
    names = (
        '"dream_adapter"',
        '"checkpoints"',
        '"checkpoints*',
        '"checkpoints-',
        '"model.partial"',
        '"model.replaced"',
    )
    modules = [
        *(ROOT / "sleep_trl").rglob("*.py"),
        *(ROOT / "launch").rglob("*.py"),
        *(ROOT / "trainers").rglob("*.py"),
    ]
    found = [(path.name, name) for path in modules if path != HOME for name in names if name in path.read_text("utf-8")]
    assert not found


def test_checkpoints_of_all_phases_are_found(tmp_path):
    run = RunFolder(tmp_path)
    for folder in (run.checkpoints, run.checkpoints_of("dreamt")):
        folder.mkdir()
    assert run.all_checkpoints == [run.checkpoints, run.checkpoints_of("dreamt")]


def test_a_nights_number_is_read_back_from_its_folder(tmp_path):
    assert [NIGHT.fullmatch(night_folder(tmp_path, n).name)[1] for n in (1, 12, 1000)] == ["001", "012", "1000"]
