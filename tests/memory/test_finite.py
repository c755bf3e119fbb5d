"""Experts that are not finite are neither stored nor used."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sleep_trl.memory import MemorySpec, attach, fold, load_memory, save_memory
from sleep_trl.memory.storage import NotFinite
from sleep_trl.runs.checksums import record_folder
from sleep_trl.trainers.expert_checkpoints import StopIfNotFinite
from tests.tiny import tiny_model

SPEC = MemorySpec(width=8, max_experts=2)
VALUES = [float("nan"), float("inf")]


def grown(value: float = 0.5):
    model = tiny_model()
    memory = attach(model, SPEC)
    _, parameter = list(memory.expert_parameters(memory.activate()))[-1]
    with torch.no_grad():
        parameter[0, 0] = value
    return memory


@pytest.mark.parametrize("value", VALUES)
def test_nothing_is_written_and_what_was_there_stays(value: float, tmp_path: Path) -> None:
    save_memory(grown(), tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with pytest.raises(NotFinite, match=r"1 of 6 weights hold NaN or infinity, such as experts\.0\..*learning_rate"):
        save_memory(grown(value), tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


@pytest.mark.parametrize("value", VALUES)
def test_a_damaged_file_is_refused(value: float, tmp_path: Path) -> None:
    save_memory(grown(), tmp_path)
    path = tmp_path / "experts.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path)
    record_folder(tmp_path)
    with pytest.raises(NotFinite, match=r"is damaged: 1 of 6 weights .* Restore it"):
        load_memory(tiny_model(), tmp_path)


def test_a_fold_whose_difference_is_not_a_number_is_refused(tmp_path: Path) -> None:
    memory = grown(float("nan"))
    memory.commit()
    with pytest.raises(RuntimeError, match="differ from the grown model's by nan"):
        fold(memory, tmp_path)


@pytest.mark.parametrize("value", VALUES)
def test_training_stops_at_the_step(value: float) -> None:
    step = SimpleNamespace(global_step=3)
    StopIfNotFinite().on_step_end(None, step, None, model=grown().model)
    with pytest.raises(NotFinite, match="unstable in step 3"):
        StopIfNotFinite().on_step_end(None, step, None, model=grown(value).model)
