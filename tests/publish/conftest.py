"""Fixtures of the tests of what happens after a night."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.finished import FinishedRun
from tests.publish.three_nights import write_run
from tests.tiny_runs import write_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def template(base, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"), base).parent


@pytest.fixture
def run(template, tmp_path) -> FinishedRun:
    """A copy of the three nights."""
    shutil.copytree(template, tmp_path / "runs")
    config = read_json(tmp_path / "runs" / "night3" / "config.json")
    config["memories"] = str(tmp_path / "runs" / "memories.jsonl")
    write_json(tmp_path / "runs" / "night3" / "config.json", config)
    return FinishedRun.read(tmp_path / "runs" / "night3")
