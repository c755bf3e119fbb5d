"""`sleep-trl plan`: docs/scaling.md shows what it prints."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sleep_trl.cli import main
from sleep_trl.cli.output import at_least
from sleep_trl.data.quickstart import MODEL

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^sleep-trl (plan .+)\n((?:.*\n)*?)```$", (ROOT / "docs/scaling.md").read_text("utf-8"), re.M)


def call(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0), *capsys.readouterr()


def test_the_docs_show_what_it_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(BLOCKS) >= 3
    for command, printed in BLOCKS:
        code, out, error = call(capsys, *shlex.split(command))
        assert out + error == printed and code == (2 if "Error: " in printed else 0)


def test_json_is_one_object(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["plan", "--gpus", "1xH200", "--model", "benchmarks/shapes/qwen3-0.6b", "--json", "--documents", "3"]
    code, out, _ = call(capsys, *words, "--tokens", "100")
    found = json.loads(out)
    assert code == 0 and found["gpus"] == "1xH200" and found["too_large"] == []
    assert found["steps"] == 3 * 4 * 6 * 4 // 6 and found["peak"]["held"]["weights"] < found["phases"]["rollouts"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.34e-5, "0.023 ms"),
        (0.59, "590 ms"),
        (1.37, "1.3 s"),
        (119, "110 s"),
        (120, "2 minutes"),
        (523_800, "140 hours"),
    ],
)
def test_a_time_is_a_lower_bound_in_a_unit_that_fits(seconds, said):
    assert at_least(seconds) == f"at least {said}"


def test_a_model_too_small_for_the_unit_is_said_to_be(capsys):
    _, out, _ = call(capsys, "plan", "--gpus", "1xH100", "--model", str(MODEL))
    assert "held throughout, GB              less than 0.05" in out
    assert re.search(r"^a step +at least 0\.\d+ ms, with rollouts at least 0\.\d+ ms$", out, re.M)
    assert "kernel launches, Python's overhead" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8xH999", "--model", "m"], "GPUs with figures are L4"),
        (["--gpus", "1xH100"], "model is missing"),
        (["--gpus", "1xH100", "--model", "./nowhere"], "does not exist"),
        (["--gpus", "3xH100", "--model", "benchmarks/shapes/qwen3-0.6b"], "cannot be split over 3 processes"),
    ],
)
def test_mistakes_end_with_a_message(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, error = call(capsys, "plan", *words)
    assert code == 2 and message in error and out == ""
