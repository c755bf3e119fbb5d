"""What a plan says that should be known before the night."""

import shutil
import sys
from pathlib import Path

import pytest

from sleep_trl.config.command_line import parse
from sleep_trl.launch import sleep
from sleep_trl.planning.caveats import find_warnings
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.runs.files import write_json, write_jsonl
from tests.tiny_runs import write_finished_run

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


@pytest.fixture
def options(tmp_path) -> list[str]:
    """A run of the bundled model on plain English."""
    write_jsonl(tmp_path / "own.jsonl", [{"text": "The museum opens every Thursday morning, except during winter."}])
    given = [f"--config={QUICKSTART}/config.yaml", f"--model={QUICKSTART}/model", "--rollout.engine=transformers"]
    return [*given, f"--memories={tmp_path}/own.jsonl", f"--output_dir={tmp_path}/run"]


def test_a_plan_warns_of_documents_that_the_model_cannot_read(options, capsys) -> None:
    assert sleep.main([*options, "--dry_run"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The model can hardly read these documents: the tokenizer spells 100% of" in shown


def test_passes_beside_steps_have_no_effect(options) -> None:
    def said(*more: str) -> bool:
        return "seeding.passes has no effect" in " ".join(find_warnings(RunInputs(parse([*options, *more]))))

    assert not said() and not said("--seeding.steps=9")  # the file gives steps
    assert said("--seeding.passes=2") and not said("--seeding.passes=2", "--seeding.steps=null")


def test_a_missing_plotly_is_said_before_the_night(options, monkeypatch) -> None:
    def said(*more: str) -> bool:
        return any(
            "No report.html will be written" in line for line in find_warnings(RunInputs(parse([*options, *more])))
        )

    assert not said()
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert said() and not said("--no-report")


def test_a_grown_model_as_a_base_leaves_its_run_behind(options, tmp_path) -> None:
    def said(model: Path) -> str:
        return " ".join(find_warnings(RunInputs(parse([*options, f"--model={model}"]))))

    run = write_finished_run(tmp_path / "night1")
    write_json(run / "config.json", {"model": "org/base"})
    shutil.copytree(QUICKSTART / "model", run / "model")
    warning = said(run / "model")
    assert f"is the grown model of {run}. Taken as a base, it leaves that run's ledger behind" in warning
    assert f"give --continue_from {run} and its base model, --model org/base." in warning
    assert "grown model" not in said(QUICKSTART / "model")
