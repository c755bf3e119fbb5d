"""Fixtures of the tests of commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleep_trl.cli import main


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Call `sleep-trl` in an empty folder; returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def documents(tmp_path) -> Path:
    path = tmp_path / "docs.jsonl"
    lines = [{"id": "a", "text": "the cat", "source": "letters"}, {"id": "b", "text": "the boat"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
