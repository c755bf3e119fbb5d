"""What all tests have in common: Ray's token, and a folder to spoil.

TRL imports vLLM where it is installed, and vLLM imports Ray, which takes its token then or never.
"""

import shutil
import signal
from pathlib import Path

import pytest

from sleep_trl.distributed.ray import prepare

prepare()

# What a shell starts in its background inherits SIGINT ignored, and hands that on; some tests send it to children.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.tiny_runs import write_memories, write_model  # noqa: E402  (may import TRL)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of a good model, and good memories."""
    shutil.copytree(model, tmp_path / "model")
    write_memories(tmp_path / "docs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path
