"""Mistakes a user makes: each gives one clear message, exit code 2 and no loaded weight."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sleep_trl.launch import sleep
from sleep_trl.runs.files import write_json
from tests.planning.bad_input import CASES
from tests.planning.mistakes import Options, continued, judged, make_arguments, options, sleep_config
from tests.tiny_runs import TEXT, write_model

ROOT = Path(__file__).resolve().parents[2]
LOAD = AutoModelForCausalLM.from_pretrained


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


@pytest.mark.parametrize("name", CASES)
def test_user_error_is_reported(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = CASES[name]
    argv = make_arguments(place, make)
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert sleep.main(argv) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("Error: ")
    assert "Traceback" not in printed.err
    assert TEXT not in printed.err
    assert printed.out == ""
    assert sorted(path for path in place.rglob("*") if "__pycache__" not in path.parts) == before


# -- mistakes that show only with the weights --------------------------------------------------------


@pytest.fixture
def weights(no_weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", LOAD)


def other_base(place: Path) -> Options:
    """The shapes of the continued run's model, but other weights."""
    shutil.copytree(place / "model", place / "right")
    write_model(place / "model", seed=1)
    return continued()(place)


def test_a_run_of_another_base_is_reported_and_blocks_nothing(
    place: Path, weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = make_arguments(place, other_base)
    assert sleep.main(argv) == 2
    printed = capsys.readouterr().err
    assert re.match(r"Error: .*night1/adapter was made on another base model: .* Give the base model", printed), printed
    assert "PYTHONDEVMODE=1" in printed and "Traceback" not in printed
    assert not (place / "run").exists()
    assert sleep.main([*argv, "--model", "right", "--dry_run"]) == 0


def test_a_teacher_that_writes_nothing_usable_is_reported(
    place: Path, weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    little = {"dataset__templates": '["paraphrase"]', "dataset__general_share": 0, "dataset__max_new_tokens": 1}
    assert sleep.main(make_arguments(place, options(**little))) == 2
    printed = capsys.readouterr().err
    assert re.search(r"(?m)^Error: The teacher wrote nothing usable .* raise dataset\.max_new_tokens", printed), printed
    assert "Traceback" not in printed


@pytest.mark.usefixtures("default_sigterm")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_before_the_night_is_begun_promises_no_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", interrupt)
    assert sleep.main(make_arguments(place, options())) == code
    assert capsys.readouterr().err == "Stopped before the run began.\n"
    assert not (place / "run").exists()


@pytest.mark.slow
def test_the_traceback_of_a_mistake_is_within_reach(place: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *make_arguments(place, other_base)]
    environment = {**os.environ, "PYTHONDEVMODE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "attach.py" in done.stderr


def test_there_are_enough_cases_with_messages_of_their_own() -> None:
    assert len(CASES) >= 30
    assert len({message for _, message in CASES.values()}) == len(CASES)


def test_good_input_is_not_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sleep.main(make_arguments(place, options(dry_run=True))) == 0
    assert capsys.readouterr().err == ""


def test_a_judge_that_is_not_asked_needs_no_model(place: Path) -> None:
    rewards = judged("lm", model="./no_judge")
    assert sleep.main(make_arguments(place, options(rewards=rewards, seeding__gamma=0, dry_run=True))) == 0


def test_rewards_and_seeding_may_be_corrected_until_the_seeding_has_begun(place: Path) -> None:
    sleep_config(place, rewards=judged("lexical", mode="exact"), seeding__alpha=0.3)
    argv = make_arguments(place, options(resume=True, dry_run=True, seeding__alpha=0.5))
    assert sleep.main(argv) == 0
    write_json(place / "run" / "phases" / "seed.json", {})
    assert sleep.main(argv) == 2


def test_other_processes_print_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert sleep.main(make_arguments(place, options(model=None))) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["alpha above 1", "no weights"])
def test_mistake_in_a_process_of_its_own(name: str, place: Path) -> None:
    make, message = CASES[name]
    command = [sys.executable, str(ROOT / "launch" / "sleep.py"), *make_arguments(place, make)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
