"""A disk that becomes full or read-only in the middle of a night: a clear error, and nothing is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.night.test_run import arguments
from tests.tiny_runs import write_model

ROOT = Path(__file__).parents[2]

NIGHTS = """
import json, os, subprocess, sys
from pathlib import Path
from sleep_trl.launch import sleep
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.distributed.progress import StepBar

disk, words, undisturbed = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
original = StepBar.on_step_end

def fill():
    with open(disk / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass

def mount(*arguments):
    subprocess.run(["mount", *arguments, str(disk)], check=True)

def protect():  # a mount on top, since the one below has the run's lock open for writing
    mount("--bind", str(disk))
    mount("-o", "remount,bind,ro")

begin = {"full": fill, "read-only": protect}
end = {"full": lambda: (disk / "filler").unlink(), "read-only": lambda: mount("-o", "remount,bind,rw")}

def spoil(self, args, state, control, **kwargs):
    if state.global_step == 1:
        begin[sys.argv[4]]()
    original(self, args, state, control, **kwargs)

StepBar.on_step_end = spoil
codes = [sleep.main(words)]
StepBar.on_step_end = original
end[sys.argv[4]]()
codes.append(sleep.main([*words, "--resume"]))
codes.append(sleep.main(undisturbed))
prints = [read_ledger(disk / name / "ledger.jsonl")[0].fingerprint for name in ("spoilt", "whole")]
print(json.dumps([codes, prints]))
"""


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("trouble", "message"), [("full", "is full. Free some space"), ("read-only", "is read-only. Make it writable")]
)
def test_it_is_reported_and_nothing_is_lost(tmp_path, trouble, message) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("needs unshare and a file system of its own")
    model = write_model(tmp_path / "model")
    words = arguments(model, tmp_path / "run")  # its memories lie beside it
    nights = [
        [*(word for word in words if not word.startswith("--output_dir")), "--no-report", f"--output_dir={disk / name}"]
        for name in ("spoilt", "whole")
    ]
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=16m tmpfs {disk} && exec "$@"', "sh"]
    command = [sys.executable, "-c", NIGHTS, str(disk), *map(json.dumps, nights), trouble]
    done = subprocess.run([*mount, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    codes, (spoilt, whole) = json.loads(done.stdout.splitlines()[-1])
    assert codes == [1, 0, 0]
    assert message in done.stderr and "--resume" in done.stderr and "Traceback" not in done.stderr
    assert spoilt == whole
