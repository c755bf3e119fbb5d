"""Wrong paths are told before torch is imported; what a launch leaves in the output folder is in nobody's way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_trl.config.command_line import parse
from sleep_trl.data.quickstart import MODEL, NIGHTS, QUICKSTART
from sleep_trl.launch import sleep
from sleep_trl.planning.chain import nights_of
from sleep_trl.planning.paths import check_paths
from sleep_trl.runs.ledger import read_ledger, write_ledger
from tests.planning.mistakes import MakeOptions, file, make_arguments, options
from tests.tiny_runs import write_finished_run

LOADED = """
import json, sys
from sleep_trl.launch.sleep import main

for name, argv in json.load(sys.stdin).items():
    code = main(argv)
    print(name, code, [heavy for heavy in ("torch", "transformers", "trl", "datasets") if heavy in sys.modules])
"""

WRONG: dict[str, MakeOptions] = {
    "model": options(model="./nowhere"),
    "memories": options(memories="no.jsonl"),
    "nights": options(memories=None, nights="docs.jsonl,no.jsonl"),
    "model of nights": options(memories=None, nights="docs.jsonl,docs.jsonl", model="./nowhere"),
    "wake_buffer": options(memories="wake:no.db"),
    "continue_from": options(continue_from="gone"),
    "skill": options(evaluation__skill="no.jsonl"),
    "reward": options(rewards='["no.py:f"]'),
    "name of a reward": options(rewards='["imitaton"]'),
    "name of a reward of dreams": options(dream__rounds=1, dream__rewards='["imitaton"]'),
    "function of a reward": file("mine.py", "def g(completions, **columns): ...", rewards='["mine.py:f"]'),
    "output_dir": file("taken/thesis.tex", "x", output_dir="taken"),
    "finished": lambda place: {"output_dir": write_finished_run(place / "done")},
}


def test_wrong_paths_are_told_before_torch_is_imported(place: Path) -> None:
    given = json.dumps({name: make_arguments(place, make) for name, make in WRONG.items()})
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, cwd=place, input=given, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{name} 2 []" for name in WRONG], done.stderr


def grown_model(place: Path, name: str) -> Path:
    """Make a run with a grown model, and return that."""
    run = write_finished_run(place / name)
    (run / "model").mkdir()
    (run / "config.json").write_text(json.dumps({"model": "org/base"}), "utf-8")
    return run / "model"


def test_a_grown_model_is_no_base_of_the_experts_that_it_holds(place: Path) -> None:
    grown = grown_model(place, "night1")
    config = parse(make_arguments(place, options(model=grown, continue_from=grown.parent)))
    with pytest.raises(ValueError, match=r"is the grown model of .*night1, and .* base model again: --model org/base"):
        check_paths([config])
    later = write_finished_run(place / "night2")  # the same base
    with pytest.raises(ValueError, match="Give the base model again"):
        check_paths([config.model_copy(update={"continue_from": later})])
    on_grown = [entry.model_copy(update={"base": "another"}) for entry in read_ledger(later / "ledger.jsonl")]
    write_ledger(later / "ledger.jsonl", on_grown)
    check_paths([config.model_copy(update={"continue_from": later})])  # it began with the grown model as its base


def test_a_function_of_a_reward_may_be_imported_or_assigned(place: Path) -> None:
    for source in ("from x import f", "f = len", "from x import *", "globals()['f'] = len", "def f(:"):
        config = parse(make_arguments(place, file("mine.py", source, rewards='["mine.py:f"]')))
        check_paths([config])


def test_what_a_launch_leaves_in_the_output_folder_is_in_nobodys_way(place: Path) -> None:
    killed = ("checksums.sha256", "config.json.partial", "phases/began.json")  # while it was about to begin
    for name in ("night.log", "night.yaml", ".gitignore", "lost+found/x", *killed):
        file(f"run/{name}", "")(place)
    assert sleep.main(make_arguments(place, options(dry_run=True))) == 0


def test_later_nights_of_a_chain_continue_what_is_not_there_yet(place: Path) -> None:
    config = parse(make_arguments(place, options(memories=None, nights="docs.jsonl,docs.jsonl", output_dir="chain")))
    check_paths(nights_of(config))


def test_the_shipped_configuration_runs_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(["--config", str(QUICKSTART / "config.yaml")])
    check_paths(nights_of(config))
    assert Path(config.model) == MODEL and Path(config.memories) == NIGHTS[0]
