"""What cannot be dropped or disabled is told before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_trl.publish.drop_plan import plan_drop
from sleep_trl.runs.files import write_json
from sleep_trl.runs.finished import FinishedRun
from sleep_trl.runs.ledger import now, read_ledger, write_ledger
from tests.tiny_runs import write_finished_run

LOADED = """
import json, sys
from sleep_trl.cli import main

for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as ended:
        print(ended.code, "torch" in sys.modules)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_finished_run(tmp_path / "run", experts=2)
    first, second = read_ledger(folder / "ledger.jsonl")
    write_ledger(folder / "ledger.jsonl", [first, second.model_copy(update={"parents": (first.id,)})])
    write_json(folder / "config.json", {"model": "m", "memories": "d.jsonl"})
    (folder / "model").mkdir()
    return folder


def test_a_refusal_loads_no_torch(run: Path) -> None:
    wrong = [["memory", "drop", str(run), "entry-000"], ["memory", "enable", str(run), "entry-000"]]
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, input=json.dumps(wrong), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["2 False", "2 False"], done.stderr
    assert "Entries that depend on entry-000" in done.stderr and "entry-000 is already enabled" in done.stderr
    assert "sleep-trl night --continue_from" in done.stderr


def test_another_drop_does_not_replace_an_interrupted_one(run: Path) -> None:
    plan = {"entries": ["entry-000"], "without": None, "when": now(), "has_report": False}
    write_json(run / "dropping.json", plan)
    found = FinishedRun.read(run)
    assert plan_drop(found, ["entry-000"]).entries == ("entry-000",)
    with pytest.raises(ValueError, match=r"Dropping entry-000 from .* was interrupted\. Finish it first"):
        plan_drop(found, ["entry-001"])
