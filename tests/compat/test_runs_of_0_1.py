"""Runs written by version 0.1 (see make_runs.py) are continued, resumed, undone, listed, reported and exported."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sleep_trl.cli import main
from sleep_trl.daemon import PendingRecords
from sleep_trl.launch import sleep
from sleep_trl.runs.ledger import read_ledger
from sleep_trl.wake import WakeBuffer
from tests.compat.make_runs import DREAMS, arguments, ingest

ARCHIVE = Path(__file__).with_name("runs_of_0_1.tar.xz")
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"
FINISHED = ["chain", "with_levels", "fed"]


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Change to a folder that holds the runs, with what they read."""
    with tarfile.open(ARCHIVE) as file:
        file.extractall(tmp_path, filter="data")
    (tmp_path / "quickstart").symlink_to(QUICKSTART)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *words: object) -> list[dict]:
    """Call `sleep-trl` with --json and return what it prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), "--json"])
    assert not ended.value.code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.arange(3, 40)[None]).logits


def states(buffer: str) -> list[str]:
    with WakeBuffer(Path(buffer)) as opened:
        return [f"{record.state} {record.detail}".strip() for record in opened.records()]


def test_a_chain_continues(runs):
    nights = json.dumps([f"{name}.jsonl" for name in ("one", "two", "three")])
    assert sleep.main(arguments("chain", nights=nights)) == 0
    before, after = (read_ledger(runs / "chain" / night / "ledger.jsonl") for night in ("night-002", "night-003"))
    assert after[:2] == before and after[2].parents == ("entry-001", "entry-002")
    results = json.loads((runs / "chain" / "night-003" / "results.json").read_text())
    assert results["chain"]["entries"] == ["entry-001", "entry-002", "entry-003"]
    assert [len(row) for row in results["chain"]["recall"]] == [1, 2, 3]


@pytest.mark.parametrize("killed", ["killed_in_seeding", "killed_between_phases"])
def test_an_interrupted_night_is_finished(runs, killed):
    """Not to the bit: general rows are not rolled out any more, so the steps that are left are others."""
    given = {"memories": "two.jsonl", "continue_from": "chain/night-001"}
    assert sleep.main([*arguments(killed, **given), "--resume"]) == 0
    whole, resumed = (load_file(runs / run / "adapter" / "experts.safetensors") for run in ("chain/night-002", killed))
    assert whole.keys() == resumed.keys()
    for name in whole:
        if name.startswith("experts.0"):
            assert torch.equal(resumed[name], whole[name])
        elif name.endswith("down"):  # starts at zero: its two or four steps are all that it has
            assert resumed[name].isfinite().all() and resumed[name].abs().max() > 1e-3
        else:
            torch.testing.assert_close(resumed[name], whole[name], rtol=0.0, atol=0.02)


def test_an_interrupted_night_with_other_options_is_refused(runs, capsys):
    given = {"memories": "two.jsonl", "continue_from": "chain/night-001", "memory.width": 8}
    assert sleep.main([*arguments("killed_in_seeding", **given), "--resume"]) == 2
    assert "memory.width (then 4, now 8)" in capsys.readouterr().err


def test_an_entry_is_disabled_enabled_and_dropped(runs, capsys):
    night = runs / "chain" / "night-002"
    experts, grown = (night / "adapter" / "experts.safetensors").read_bytes(), logits(night / "model")
    assert call(capsys, "memory", "disable", "chain", "entry-002") == [{"entry": "entry-002", "state": "disabled"}]
    assert (logits(night / "model") - logits(runs / "chain" / "night-001" / "model")).abs().max() < 1e-5
    call(capsys, "memory", "enable", "chain", "entry-002")
    assert (night / "adapter" / "experts.safetensors").read_bytes() == experts
    assert torch.equal(logits(night / "model"), grown)
    (dropped,) = call(capsys, "memory", "drop", "chain", "entry-002", "--yes")
    assert dropped["dropped"] == ["entry-002"] and dropped["also_in"] == []
    assert (logits(night / "model") - logits(runs / "chain" / "night-001" / "model")).abs().max() < 1e-5
    (dropped,) = call(capsys, "memory", "drop", "chain", "entry-001", "--yes")
    assert dropped["also_in"] == ["chain/night-001"]
    assert torch.equal(logits(night / "model"), logits(runs / "model"))
    assert [row["state"] for row in call(capsys, "memory", "list", "chain")] == ["dropped", "dropped"]


def test_a_night_relearns_without_an_entry(runs):
    given = {"continue_from": "chain/night-002", "memory.max_experts": 4}
    assert sleep.main(arguments("forgot", "forget:entry-001", **given)) == 0
    entries = read_ledger(runs / "forgot" / "ledger.jsonl")
    assert entries[0].dropped and entries[-1].holds == ("entry-002",)


def test_a_chain_fed_from_a_buffer_goes_on(runs, capsys):
    assert states("wake.db") == ["consolidated entry-001", "consolidated entry-001", "new"]
    ingest("four")  # too late for the night that was killed
    nights = json.dumps(["wake:wake.db"] * 2)
    assert sleep.main([*arguments("fed", nights=nights), "--resume"]) == 0
    assert states("wake.db") == ["consolidated entry-001"] * 2 + ["consolidated entry-002", "new"]
    assert [row["records"] for row in call(capsys, "memory", "list", "fed")] == [2, 1]
    (dropped,) = call(capsys, "memory", "drop", "fed", "--source", "one.txt", "--later", "keep")
    assert dropped["dropped"] == ["entry-001"] and dropped["buffer"] == "wake.db"
    assert states("wake.db") == ["forgotten", "new", "consolidated entry-002", "new"]


def test_records_of_a_quarantined_night_start_no_other(runs):
    """The one in `aside-001` was about `one`, of which nothing usable was written."""
    for name, counted in (("one", 0), ("four", 1)):
        ingest(name, Path("again.db"))
        assert PendingRecords(Path("again.db"), chain=Path("fed")).count().records == counted


@pytest.mark.parametrize("policy", ["onward", "promote"])
@pytest.mark.filterwarnings("default::FutureWarning")
def test_a_chain_with_levels_continues(runs, policy):
    nights = json.dumps([f"{name}.jsonl" for name in ("one", "two", "three", "four")])
    assert sleep.main(arguments("with_levels", nights=nights, **{"levels.when_full": policy})) == 0
    entries = read_ledger(runs / "with_levels" / "night-004" / "ledger.jsonl")
    assert [entry.holds for entry in entries[:4]] == [(), (), ("entry-001", "entry-002"), ()]
    assert len(entries) == 6 and entries[4].level == 2


def test_a_night_learns_the_dreams_it_had_before_it_was_killed(runs, capsys):
    assert sleep.main([*arguments("dreaming", "town.jsonl", **DREAMS), "--resume"]) == 0
    results = json.loads((runs / "dreaming" / "results.json").read_text())
    assert results["dreams"]["rounds"][0]["rewarded"] > 0
    call(capsys, "report", "dreaming")
    assert 'class="dream"' in (runs / "dreaming" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("run", FINISHED)
def test_a_finished_run_is_read(runs, capsys, run):
    rows = call(capsys, "memory", "list", run)
    assert [row["entry"] for row in rows] == [f"entry-00{number + 1}" for number in range(len(rows))]
    for row in rows:
        assert call(capsys, "memory", "show", run, row["entry"])[0]["entry"] == row["entry"]
    (written,) = call(capsys, "report", run)
    page = Path(written["report"]).read_text("utf-8")
    assert all(row["entry"] in page for row in rows)
    assert re.search(r'<figure id="(chain|life)"', page) or len(rows) == 1  # the recall of every night
    for form in ("checkpoint", "adapter"):
        call(capsys, "export", run, "--to", form, "--output", f"exported-{form}")
    night = Path(written["report"]).parent
    assert torch.equal(logits(runs / "exported-checkpoint"), logits(night / "model"))
