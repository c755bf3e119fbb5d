"""The table of all bars in benchmarks/README.md says what the committed results say."""

import json
import re
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = re.compile(
    r"^\| .+ \| `([\w.]+)` \| ([<>]=) ([\d.]+) \| ([\d.]+) \| (yes|\*\*no\*\*) \| \d\d November, \w+ \| `(\S+)` \|$",
    re.MULTILINE,
)


def results(name: str) -> dict[str, Any]:
    """Return the figures of a results file: one object, one a line, or runs with a result each."""
    text = (BENCHMARKS / "results" / name).read_text("utf-8")
    found = [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else [json.loads(text)]
    found += [run["result"] for one in found for run in one.get("runs", [])]
    return {key: value for one in found for key, value in one.items()}


def test_every_bar_is_as_measured():
    rows = ROW.findall((BENCHMARKS / "README.md").read_text("utf-8"))
    assert len(rows) == 24
    for key, sign, bound, figure, met, file in rows:
        value: Any = results(file)
        for part in key.split("."):
            value = value[part]
        assert figure == (f"{value:.0f}" if value >= 1000 else f"{value:.4g}"), key
        assert (met == "yes") == (value <= float(bound) if sign == "<=" else value >= float(bound)), key
