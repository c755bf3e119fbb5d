"""A study keeps each run as it is done, and refuses to mix what was measured under other settings."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "_report.py"
spec = importlib.util.spec_from_file_location("benchmarks_report", PATH)
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


def arguments(path: Path, *options: str):
    return report.study_parser("", ["one", "two"]).parse_args(["--seeds", "2", "--output", str(path), *options])


def test_an_interrupted_study_goes_on_where_it_was(tmp_path):
    path, done = tmp_path / "results" / "study.json", []

    def run(variant, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((variant, seed))
        return {"seed": seed}

    with pytest.raises(KeyboardInterrupt):
        report.run_study(arguments(path), {"steps": 5}, run)
    assert done == [("one", 42), ("two", 42), ("one", 43)]
    assert set(json.loads(path.read_text())["runs"]["two"]) == {"42"}
    done.clear()
    runs = report.run_study(arguments(path), {"steps": 5}, run)
    assert done == [("two", 43)]
    assert runs == {name: {"42": {"seed": 42}, "43": {"seed": 43}} for name in ("one", "two")}
    assert json.loads(path.read_text()) == {"settings": {"steps": 5}, "runs": runs}


def test_runs_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"settings": {"steps": 6}, "runs": {}}))
    with pytest.raises(ValueError, match=r"'steps': 6.*'steps': 5"):
        report.run_study(arguments(path), {"steps": 5}, lambda variant, seed: {})


def test_only_what_was_asked_for_is_reported(tmp_path, capsys):
    path = tmp_path / "study.json"
    report.run_study(arguments(path), {}, lambda variant, seed: {"seed": seed})
    runs = report.run_study(arguments(path, "--variants", "two"), {}, lambda variant, seed: {})
    report.report_study([("variant", "seed"), ("two", report.cell([42, 43]))], {}, runs, only_json=False)
    *table, last = capsys.readouterr().out.splitlines()
    assert table == ["| variant | seed |", "| --- | ---: |", "| two | 42.5 (42.0 to 43.0) |", ""]
    assert json.loads(last)["runs"] == {"two": {"42": {"seed": 42}, "43": {"seed": 43}}}
    assert report.cell([3.0, 3.0], digits=0) == "3"
