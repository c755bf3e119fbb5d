"""What is private of TRL is used in one place, and is what the trainers count on."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from sleep_trl.trainers import DreamingTrainer, KnowledgeSeedingTrainer
from sleep_trl.trainers.trl_private import METHODS

ROOT = Path(__file__).parents[2]


def modules_of_trl(path: Path) -> set[str]:
    """Return the modules below `trl` that a file imports from: all but `trl` itself are private."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in found if name.startswith("trl.")}


def test_one_module_imports_what_is_private():
    paths = [path for top in ("sleep_trl", "trainers", "rewards", "launch") for path in (ROOT / top).rglob("*.py")]
    importing = {path.name for path in paths if modules_of_trl(path)}
    assert importing == {"trl_private.py"}


@pytest.mark.parametrize("name", METHODS)
def test_trl_has_each_method_with_its_parameters(name):
    parameters = tuple(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert parameters[1 : len(METHODS[name]) + 1] == METHODS[name]


@pytest.mark.parametrize("trainer", [KnowledgeSeedingTrainer, DreamingTrainer])
def test_each_private_method_of_trl_that_is_overridden_is_listed(trainer):
    ours = [cls for cls in trainer.__mro__ if cls.__module__.startswith("sleep_trl")]
    trls = [cls for cls in GRPOTrainer.__mro__ if cls.__module__.startswith("trl.")]
    private = {name for cls in trls for name, value in vars(cls).items() if name[:1] == "_" and callable(value)}
    overridden = {name for cls in ours for name in vars(cls) if name in private and not name.startswith("__")}
    assert overridden <= set(METHODS)
    assert overridden


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is for a machine without a GPU")
def test_deepspeed_prints_nothing_after_the_trainers() -> None:
    """TRL imports it with the first trainer. Without a GPU it warns on standard output, unless it is told."""
    pytest.importorskip("deepspeed")
    env = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", "import sleep_trl.trainers, deepspeed"]
    finished = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert "accelerator" not in finished.stdout + finished.stderr
