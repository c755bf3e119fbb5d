"""`sleep-trl new`: the file that it writes passes a dry run, and nothing is overwritten."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from sleep_trl.cli import main
from sleep_trl.config.command_line import parse
from sleep_trl.data.quickstart import MODEL
from sleep_trl.launch import sleep
from tests.tiny_runs import write_memories


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_what_it_writes_passes_a_dry_run_from_another_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(MODEL, "model")
    write_memories(Path("docs.jsonl"))
    assert call("new", "my night", "--model", "model", "--memories", "docs.jsonl") == 0
    check = shlex.split(capsys.readouterr().out.split("check it: ")[1].splitlines()[0])
    assert check == ["sleep-trl", "night", "--config", "my night/night.yaml", "--dry_run"]

    monkeypatch.chdir(tmp_path)
    config = parse(["--config=here/my night/night.yaml"])
    assert config.output_dir == tmp_path / "here" / "my night" / "run"
    assert sleep.main(["--config=here/my night/night.yaml", "--dry_run"]) == 0
    assert not config.output_dir.exists()


def test_names_of_the_hub_stay_and_buffers_and_paths_become_absolute(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call("new", "a", "--model", "Qwen/Qwen3-0.6B", "--memories", "wake:~/wake.db", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"config": "a/night.yaml"}
    config = parse(["--config=a/night.yaml"])
    assert config.model == "Qwen/Qwen3-0.6B"
    assert config.source.buffer == tmp_path / "home" / "wake.db"


def test_paths_that_go_up_are_written_without_dots(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    write_memories(tmp_path / "docs.jsonl")
    (tmp_path / "linked").symlink_to(MODEL)
    monkeypatch.chdir(tmp_path / "a")
    assert call("new", "../b", "--model", "../linked", "--memories", "../docs.jsonl") == 0
    config = parse([f"--config={tmp_path}/b/night.yaml"])
    assert (config.memories, config.output_dir) == (str(tmp_path / "docs.jsonl"), tmp_path / "b" / "run")
    assert config.model == str(MODEL.resolve())
    monkeypatch.chdir(tmp_path)
    assert call("new", "c", "--model", "linked", "--memories", "wake:a/../wake.db") == 0
    config = parse(["--config=c/night.yaml"])
    assert (config.model, config.source.buffer) == (str(tmp_path / "linked"), tmp_path / "wake.db")


def test_nothing_is_overwritten(tmp_path: Path, capsys) -> None:
    (tmp_path / "night.yaml").write_text("mine")
    assert call("new", tmp_path, "--model", "m", "--memories", "d") == 2
    assert "exists and is not overwritten. Give another folder, or delete it." in capsys.readouterr().err
    assert (tmp_path / "night.yaml").read_text() == "mine"
    assert call("new", tmp_path / "night.yaml", "--model", "m", "--memories", "d") == 2
    assert (tmp_path / "night.yaml").read_text() == "mine"


def test_what_is_not_there_is_told_before_a_file_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("new", "a", "--model", "./nowhere", "--memories", "d") == 2
    assert "model: the folder ./nowhere does not exist" in capsys.readouterr().err
    assert call("new", "a", "--model", "m", "--memories", "docs/") == 2
    assert "memories: docs/ does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert call("new", "a", "--model", "m", "--memories", "docs") == 0  # may be on the Hub
    assert "docs is no file or folder here, so it is taken as the name of a data set." in capsys.readouterr().out
