"""A run keeps the dtype with which it, or the run it continues, was begun."""

from pathlib import Path

import pytest
import torch

from sleep_trl.config import RunConfig
from sleep_trl.models import dtype
from sleep_trl.models.dtype import dtype_without_measuring
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.output_dir import changed_options
from sleep_trl.runs.files import write_json
from sleep_trl.runs.folder import RunFolder


def config_of(tmp_path: Path, **options) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "memories": "d.jsonl", "output_dir": tmp_path / "run", **options})


def begin(folder: Path, **options) -> RunFolder:
    run = RunFolder(folder)
    write_json(run.config, config_of(folder.parent, output_dir=folder, **options).model_dump(mode="json"))
    return run


def set_speeds(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(dtype, "measure_cpu", lambda: (float32, bfloat16))


def test_a_new_run_takes_what_is_measured(tmp_path, monkeypatch) -> None:
    for speeds, name in (((151.0, 83.0), "float32"), ((100.0, 400.0), "bfloat16")):
        set_speeds(monkeypatch, *speeds)
        inputs = RunInputs(config_of(tmp_path))
        assert inputs.config.dtype == inputs.dtype.name == name and "measured" in inputs.dtype.reason
        assert "dtype" in inputs.config.model_fields_set  # so that given.json holds it
        assert RunInputs(config_of(tmp_path, dtype="float32")).dtype == ("float32", "as asked for")


def test_a_resumed_run_keeps_its_dtype(tmp_path, monkeypatch) -> None:
    set_speeds(monkeypatch, 151, 83)
    run = begin(tmp_path / "run", dtype="bfloat16")
    inputs = RunInputs(config_of(tmp_path, resume=True))
    assert inputs.dtype == ("bfloat16", "with which the run was begun")
    assert changed_options(inputs.config, run.config) == []
    other = RunInputs(config_of(tmp_path, resume=True, dtype="float32")).config
    assert changed_options(other, run.config) == ["dtype (then 'bfloat16', now 'float32')"]


def test_a_night_continues_in_the_dtype_of_the_night_before(tmp_path, monkeypatch) -> None:
    set_speeds(monkeypatch, 151, 83)
    before = begin(tmp_path / "before", dtype="bfloat16")
    assert RunInputs(config_of(tmp_path, continue_from=before.path)).config.dtype == "bfloat16"
    asked = config_of(tmp_path, continue_from=before.path, dtype="float32")
    assert RunInputs(asked).config.dtype == "float32"


def test_runs_from_before_the_cpu_was_measured_keep_theirs(tmp_path, monkeypatch) -> None:
    set_speeds(monkeypatch, 100, 400)
    run = begin(tmp_path / "run")  # its config.json says auto
    resumed = RunInputs(config_of(tmp_path, resume=True))
    assert resumed.config.dtype == dtype_without_measuring()
    assert changed_options(resumed.config, run.config) == []
    before = begin(tmp_path / "before")
    write_json(before.model / "config.json", {"dtype": "bfloat16"})  # begun on a GPU
    assert RunInputs(config_of(tmp_path, continue_from=before.path)).config.dtype == "bfloat16"
