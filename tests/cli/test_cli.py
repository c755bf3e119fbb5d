"""The command `sleep-trl`: its output and exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sleep_trl.cli import app
from sleep_trl.data.quickstart import MODEL
from sleep_trl.runs.files import write_json, write_text
from sleep_trl.runs.ledger import read_ledger, write_ledger
from sleep_trl.wake import WakeBuffer
from tests.cli.commands import COMMAND, ROOT, rows
from tests.publish.three_nights import write_run
from tests.report.pages import make_results
from tests.tiny_runs import arguments, write_finished_run, write_memories, write_model

# -- schedule --------------------------------------------------------------------------------------


def test_schedule_prints_when_levels_are_consolidated(call):
    code, out, _ = call("schedule", "--tokens", 10_000)
    assert code == 0 and len(out.splitlines()) == 10
    assert out.splitlines()[4].split("  ")[-1] == "level 1 → level 2, then context → level 1"
    assert out.splitlines()[9].endswith("level 2 updates, then level 1 → level 2, then context → level 1")
    code, out, _ = call("schedule", "--tokens", 40, "--chunks", "20,40", "--ingested", 10, "--json")
    assert rows(out) == [
        {"tokens": 20, "edges": [{"sender": 0, "receiver": 1}]},
        {"tokens": 40, "edges": [{"sender": 1, "receiver": None}, {"sender": 0, "receiver": 1}]},
    ]
    code, former, warning = call("schedule", "--tokens", 40, "--chunks", "20,40", "--heard", 10, "--json")
    assert former == out and warning == "Warning: --heard is now --ingested; the old name will be removed in 0.3.\n"


# -- memory ----------------------------------------------------------------------------------------


def test_memory_drops_what_came_from_a_source(call, tmp_path):
    run = write_run(tmp_path, write_model(tmp_path / "base"))
    (run / "dream_adapter" / "x").unlink()
    (run / "dream_adapter").rmdir()
    assert [row["state"] for row in rows(call("memory", "list", run, "--json")[1])] == ["enabled"] * 3
    assert "entry-002" in call("memory", "list", run)[1]
    assert "contract-17.pdf" in call("memory", "show", run, "entry-002")[1]
    assert call("memory", "disable", run, "entry-003")[:2] == (0, "entry-003 is disabled.\n")
    assert call("memory", "disable", run, "entry-003")[0] == 2
    assert rows(call("memory", "enable", run, "entry-003", "--json")[1]) == [{"entry": "entry-003", "state": "enabled"}]
    drop = ("memory", "drop", run, "--source", "contract-17.pdf", "--buffer", "wake.db", "--json")
    code, _, err = call(*drop)
    assert code == 2 and "entry-003" in err and "--later drop" in err
    _, out, _ = call(*drop, "--later", "keep")
    (row,) = rows(out)
    assert (row["dropped"], row["queued"], row["lost"]) == (["entry-001", "entry-002"], ["a", "d"], [])
    assert [row["id"] for row in rows(call("wake", "list", "--buffer", "wake.db", "--json")[1])] == ["a", "d"]
    assert [row["state"] for row in rows(call("memory", "list", run, "--json")[1])] == ["dropped", "dropped", "enabled"]


def test_what_will_be_lost_is_said_before_anything_is_dropped(call, tmp_path, monkeypatch):
    run = write_run(tmp_path, write_model(tmp_path / "base"))
    (run / "dream_adapter" / "x").unlink()
    (run / "dream_adapter").rmdir()
    (run.parent / "memories.jsonl").write_text(json.dumps({"id": "d", "text": "the boat sleeps"}) + "\n")
    before = (run / "ledger.jsonl").read_bytes()
    drop = ("memory", "drop", run, "entry-002", "--later", "keep")
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, _, err = call(*drop, "--buffer", "wake.db")
    assert code == 1 and "not be queued again, because their texts were not found: c." in err
    assert (run / "ledger.jsonl").read_bytes() == before and "Aborted" in err
    code, _, err = call(*drop)
    assert code == 1 and "because the run has no wake buffer (give --buffer for that): c, d." in err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, err = call(*drop, "--buffer", "wake.db")
    assert (code, out) == (2, "") and "texts were not found: c. Nothing was dropped" in err
    assert "--yes" in err and "--buffer" in err and (run / "ledger.jsonl").read_bytes() == before
    assert call(*drop, "--buffer", "wake.db", "--yes")[0] == 0
    assert read_ledger(run / "ledger.jsonl")[1].dropped


def test_an_entry_that_holds_others_has_no_figures_of_its_own(call, tmp_path):
    run = write_finished_run(tmp_path / "run", experts=2)
    first, second = read_ledger(run / "ledger.jsonl")
    write_ledger(run / "ledger.jsonl", [first, second.model_copy(update={"holds": (first.id,)})])
    write_json(run / "config.json", {"model": "m", "memories": "d.jsonl"})
    lines = call("memory", "list", run)[1].splitlines()
    assert [line.count("– → –") for line in lines if "entry-" in line] == [1, 0]
    shown = call("memory", "show", run, second.id)[1]
    assert f"holds        {first.id}" in shown and "recall" not in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_options_are_spelled_with_dashes_or_underscores(call, tmp_path):
    for option in ("--config_file", "--config-file"):
        assert "--config_file: absent does not exist" in call("doctor", option, "absent")[2]
    for option in ("--push_to_hub", "--push-to-hub"):
        code, _, err = call("export", ".", "--to", "adapter", "--output", "x", option, "a b")
        assert code == 2 and "--push_to_hub:" in err
    for option, flag in (("--seeding.num_generations", "--no_report"), ("--seeding.num-generations", "--no-report")):
        code, _, err = call("night", "--model", "m", "--memories", "x.jsonl", option, "1", flag)
        assert code == 2 and "seeding.num_generations: '1' was given" in err


def test_every_path_of_every_command_may_begin_with_the_home_folder(call, tmp_path, documents, monkeypatch):
    """A shell leaves `~` as it is in `--buffer=~/wake.db`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert call("wake", "add", documents, "--buffer=~/wake.db")[0] == 0
    assert (tmp_path / "home" / "wake.db").is_file() and not (tmp_path / "~").exists()
    found = dict(paths_of(app))
    assert set(found) == {"buffer", "config_file", "folder", "output", "output_dir", "path", "record", "run"}
    assert {parser and parser("~/a") for parser in found.values()} == {tmp_path / "home" / "a"}


def paths_of(commands):
    """Yield the name and the parser of each parameter that is a path, of these commands and of those below them."""
    for command in commands.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *info = get_args(hint) or (hint,)
            if Path in (kind, *get_args(kind)):
                yield name, info[0].parser
    for group in commands.registered_groups:
        yield from paths_of(group.typer_instance)


# -- night and report ------------------------------------------------------------------------------


def test_night_is_launch_sleep(call):
    code, _, err = call("night", "--memories", "absent.jsonl", "--model", "absent", "--seeding.steps", "0")
    assert code == 2 and "seeding.steps" in err
    code, out, _ = call("night", "--help")
    assert "--json" in out and "print results.json without history" in " ".join(out.split())
    assert code == 0 and "--seeding.alpha" in out


def test_a_night_prints_its_results_as_json(call, tmp_path):
    model, memories = write_model(tmp_path / "model"), write_memories(tmp_path / "docs.jsonl")
    words = arguments(model=model, memories=memories, output_dir="chain", dataset__general_samples=4, seeding__steps=1)
    code, out, err = call("night", *words, "--no-report", "--dataset.keep_truncated", "--json")
    assert code == 0 and "One night: entry-001" in err
    [row] = rows(out)
    assert (row["run"], row["entry"]) == ("chain", "entry-001") and "history" not in row
    code, out, _ = call("night", *words, "--json")
    assert (code, out) == (2, "")  # the folder is not empty


def test_version(call):
    assert call("--version")[1].startswith("sleep-trl ")


def test_the_demo_needs_no_clone(call):
    code, out, err = call("demo", "--nights", 2, "--dry-run", "--seeding.steps", 3)
    assert code == 0, err
    assert str(MODEL) in out and "runs/demo/night-001" in out
    code, _, err = call("demo", "--nights", 4)
    assert code == 2 and "less than or equal to 3" in err


def test_report_is_rewritten(call, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(make_results()))
    assert call("report", tmp_path, "--json")[0] == 0
    assert (tmp_path / "report.html").is_file()


def test_of_a_chain_the_newest_committed_night_is_used(call, tmp_path):
    run = write_run(tmp_path, write_model(tmp_path / "base"))
    for number in (1, 2):
        shutil.copytree(run, tmp_path / "chain" / f"night-{number:03}")
    (tmp_path / "chain" / "night-003").mkdir()  # started, not finished
    write_json(tmp_path / "chain" / "night-002" / "results.json", make_results())
    (tmp_path / "chain" / "night-002" / "phases" / "write_dataset.json").unlink()
    newest = str(tmp_path / "chain" / "night-002")
    assert call("memory", "list", "chain", "--json") == call("memory", "list", newest, "--json")
    assert rows(call("report", "chain", "--json")[1]) == [{"report": "chain/night-002/report.html"}]


def test_a_list_fits_80_columns(call, tmp_path, monkeypatch):
    run = write_run(tmp_path, write_model(tmp_path / "base"))
    ledger = run / "ledger.jsonl"
    write_text(ledger, ledger.read_text().replace('"source": "', '"source": "The Town Crier, night 1, page '))
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("memory", "list", run)[1].splitlines()
    assert all(len(line) <= 80 for line in lines) and len(lines) <= 4 + 5 * len(read_ledger(ledger))


# -- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("schedule --tokens 0", "greater than or equal to 1"),
        ("schedule --tokens 5 --chunks 3,x", "'3,x' is not a list of numbers"),
        ("schedule --tokens 5 --chunks 3,4", "4 follows 3"),
        ("wake add absent.jsonl", "absent.jsonl does not exist"),
        ("wake add data.csv", "--form"),
        ("wake add data.csv --form xml", "'xml' is not one of"),
        ("wake add docs.jsonl absent.jsonl", "absent.jsonl does not exist"),
        ("wake add docs.jsonl --buffer data.csv", "data.csv is not a wake buffer"),
        ("wake add docs.jsonl --buffer data.csv/wake.db", "cannot be opened"),
        ("wake list", "There is no wake buffer runs/wake.db"),
        ("wake list --state old", "'old' is not one of"),
        ("wake tail absent.txt", "absent.txt cannot be read"),
        ("wake forget nobody", "There is no wake buffer"),
        ("memory list absent", "absent does not exist"),
        ("memory show . entry-001", "lacks config.json"),
        ("memory drop .", "Give either an entry or --source"),
        ("report absent", "absent is not a folder. Give the output_dir of a finished run"),
        ("report .", "has no results.json, which a finished night has. Give the output_dir"),
        ("export . --to adapter --output x --public", "--push_to_hub"),
        ("snore", "No such command 'snore'"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(call, documents, tmp_path, arguments, message):
    (tmp_path / "data.csv").write_text("a,b\n" * 100)
    code, out, err = call(*arguments.split())
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    assert not (tmp_path / "runs" / "wake.db").exists() or "docs.jsonl absent" not in arguments


def test_a_buffer_that_cannot_be_written_is_code_1_and_loses_nothing(call, documents, monkeypatch):
    call("wake", "add", documents)

    def full(self: WakeBuffer, *given: object) -> None:
        raise RuntimeError("The wake buffer could not be written (database or disk is full)")

    monkeypatch.setattr(WakeBuffer, "add", full)
    code, out, err = call("wake", "add", documents)
    assert (code, out) == (1, "") and err.startswith("Error: The wake buffer could not be written")


def test_a_closed_pipe_is_not_an_error(tmp_path, documents):
    big = tmp_path / "big.jsonl"
    big.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(5_000)))
    database = str(tmp_path / "wake.db")
    subprocess.run([*COMMAND, "wake", "add", str(big), "--buffer", database], cwd=ROOT, check=True)
    process = subprocess.Popen(
        [*COMMAND, "wake", "list", "--buffer", database], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()


def test_completion_knows_the_commands():
    environment = {
        **os.environ,
        "_SLEEP_TRL_COMPLETE": "complete_bash",
        "COMP_WORDS": "sleep-trl wake ",
        "COMP_CWORD": "2",
    }
    code = "from sleep_trl.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"add", "tail", "list", "forget"}
