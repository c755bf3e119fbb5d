import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.launch.ordinary_runs import PROSE, TEXT


@pytest.fixture
def memories(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text(TEXT, "utf-8")
    row = {"text": TEXT, "questions": [{"question": "the cat of Mira is called", "answers": ["Tolu"]}]}
    (tmp_path / "skill.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (tmp_path / "prose.txt").write_text(PROSE, "utf-8")
    return tmp_path / "notes"


@pytest.fixture
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)
