"""Launch a script by a configuration of launch/accelerate, as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or not any(map(shutil.which, ("g++", "c++", "clang++"))),
    reason="needs DeepSpeed, and a C++ compiler for its collectives on the CPU",
)


def start(configuration: str, *script: object) -> subprocess.Popen[str]:
    """Start a script under `launch/accelerate/<configuration>.yaml`, one thread a process."""
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command = [*launch, "--config_file", f"launch/accelerate/{configuration}.yaml", *map(str, script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def launch(configuration: str, *script: object, timeout: float = 900) -> str:
    """Run a script to its end and return what it printed."""
    process = start(configuration, *script)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, output[-8000:]
    return output
