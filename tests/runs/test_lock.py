"""The lock of a run, against another process and after a kill."""

import os
import subprocess
import sys

import pytest

from sleep_trl.runs.lock import NAME, RunInUse, run_lock

HOLD = """
import sys, time
from pathlib import Path
from sleep_trl.runs.lock import run_lock

with run_lock(Path(sys.argv[1]), is_shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("other", ["shared", "alone"])
def test_it_is_held_against_another_process_until_that_is_killed(tmp_path, other):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, other], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(RunInUse, match=rf"run is in use by process {process.pid} \(-c .*run {other}\)"),
            run_lock(folder),
        ):
            pass
        if other == "shared":
            with run_lock(folder, is_shared=True):
                pass
    finally:
        process.kill()
        process.wait()
    with run_lock(folder):
        assert f"process {os.getpid()} " in (folder / NAME).read_text()


def test_it_leaves_nothing_behind(tmp_path):
    with run_lock(tmp_path / "new"):
        assert (tmp_path / "new" / NAME).is_file()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with run_lock(tmp_path / "mine"):
        pass
    with run_lock(tmp_path / "mine", is_shared=True):
        with run_lock(tmp_path / "mine", is_shared=True):
            pass
        with pytest.raises(RunInUse), run_lock(tmp_path / "mine"):  # the first one is still there
            pass
    assert list((tmp_path / "mine").iterdir()) == []


def test_its_file_is_not_mistaken_for_one_that_was_removed(tmp_path):
    """A process that opened the file just before its last holder removed it does not hold the lock."""
    with run_lock(tmp_path):
        (tmp_path / NAME).unlink()
        with run_lock(tmp_path):  # a new file, as a third process would make it
            pass
    with run_lock(tmp_path), pytest.raises(RunInUse), run_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_has_none(tmp_path):
    (tmp_path / "file").touch()
    with run_lock(tmp_path / "file" / "run"), run_lock(tmp_path / "file" / "run"):
        pass
