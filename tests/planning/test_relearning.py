"""Nights that remove entries and relearn the entries that depend on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_trl.config import MemorySource
from sleep_trl.launch import sleep
from sleep_trl.memory import ExpertRecord, Memory, load_memory
from sleep_trl.planning.relearning import plan_relearning, prompts_without
from sleep_trl.runs.files import read_json, read_jsonl, write_jsonl
from sleep_trl.runs.ledger import expert_owners, read_ledger
from sleep_trl.wake import WakeBuffer
from tests.night.test_run import arguments
from tests.planning.test_chain import chain
from tests.planning.test_consolidation import entry

# -- what is concerned -----------------------------------------------------------------------------

FIRST, SECOND = entry(1, 0), entry(2, 1, parents=("entry-001",))
THIRD = entry(3, 2, parents=("entry-001", "entry-002"))


def plan(entries: list, *names: str, disabled: tuple[int, ...] = ()):
    experts = {e.expert: ExpertRecord(e.expert, e.level, e.expert not in disabled) for e in expert_owners(entries)}
    return plan_relearning(names, entries, experts)


def test_what_was_learned_later_is_relearned():
    found = plan([FIRST, SECOND, THIRD], "entry-002")
    assert (found.forgotten, found.holds) == (("entry-002",), ("entry-003",))
    assert (found.senders, found.dropped, found.level) == ((1, 2), ("entry-002",), 1)
    assert plan([FIRST, SECOND, THIRD], "entry-001").holds == ("entry-002", "entry-003")


def test_of_a_shared_expert_the_others_stay():
    both = entry(4, 3, 2, holds=("entry-001", "entry-002"))
    later = entry(5, 0, parents=("entry-004",))
    found = plan([FIRST, SECOND, both, later], "entry-001")
    assert (found.forgotten, found.holds) == (("entry-001",), ("entry-002", "entry-005"))
    assert (found.senders, found.dropped, found.level) == ((0, 3), ("entry-001", "entry-004"), 2)
    assert plan([FIRST, SECOND, both, later], "entry-004").forgotten == ("entry-001", "entry-002", "entry-004")


def test_a_consolidation_that_was_taken_in_stands_for_all_that_it_holds():
    taken = [
        entry(4, 3, 2, holds=("entry-001", "entry-002")),
        entry(5, 0),
        entry(6, 1, 3, holds=("entry-004", "entry-005")),
    ]
    found = plan([FIRST, SECOND, *taken], "entry-004")
    assert found.forgotten == ("entry-001", "entry-002", "entry-004") and found.holds == ("entry-005",)


def test_a_removed_entry_may_be_disabled():
    assert plan([FIRST, SECOND], "entry-001", disabled=(0,)).senders == (0, 1)


def test_a_prompt_that_both_have_is_not_asked():
    """The teacher still knows the first, and would tell it."""
    asked = [("entry-001", "Summary of the Crier:"), ("entry-002", "Summary of the Crier:"), ("entry-002", "The boat")]
    rows = [{"entry": name, "prompt": prompt} for name, prompt in asked]
    assert prompts_without(rows, ("entry-001",)) == rows[2:]
    assert prompts_without(rows, ()) == rows


@pytest.mark.parametrize(
    ("names", "disabled", "message"),
    [
        (("entry-009",), (), "no entry 'entry-009' to remove"),
        (("entry-001,entry-002",), (), r"Name several as forget:entry-001\+entry-002"),
        (("entry-003",), (), "sleep-trl memory drop RUN entry-003"),
        (("entry-001",), (1,), "entry-002 would have to be relearned, but is disabled"),
    ],
)
def test_impossible_removals_are_refused(names, disabled, message):
    with pytest.raises(ValueError, match=message):
        plan([FIRST, SECOND, THIRD], *names, disabled=disabled)


def test_names_stand_behind_a_prefix():
    assert MemorySource.parse("forget:entry-001+entry-002").forget == ("entry-001", "entry-002")
    assert MemorySource.parse("forget.jsonl") == MemorySource(documents="forget.jsonl")


# -- a night ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_chain(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chains") / "chain"
    words = chain(model, folder, "one", "two", **{"memory.max_experts": 4})
    tell_otherwise(folder.parent / "two.jsonl")
    assert sleep.main(words) == 0
    return folder / "night-002"


def tell_otherwise(memories: Path) -> None:
    """Let a night be about other texts than those before it, so that the model asks other questions."""
    rows = [{**row, "text": " ".join(reversed(row["text"].split()))} for row in read_jsonl(memories)]
    write_jsonl(memories, rows)


def forget(
    model: Path, finished_chain: Path, folder: Path, memories: str = "forget:entry-001", **options: object
) -> list[str]:
    given = {"memory.max_experts": None, "continue_from": finished_chain, **options}
    words = [word for word in arguments(model, folder, **given) if not word.startswith(("--memories", "--memory.max"))]
    return [*words, f"--memories={memories}", "--no-report"]


@pytest.fixture(scope="module")
def forgot(model, finished_chain) -> Path:
    folder = finished_chain.parents[1] / "forgot"
    assert sleep.main(forget(model, finished_chain, folder)) == 0
    return folder


def test_one_expert_comes_in_the_place_of_those_concerned(finished_chain, forgot):
    first, second, third = read_ledger(forgot / "ledger.jsonl")
    assert first.dropped and not second.dropped and (third.holds, third.tokens) == (("entry-002",), 0)
    assert [source.id for source in third.sources] == ["two-0", "two-1"]
    assert [record["index"] for record in read_json(forgot / "adapter" / "memory.json")["experts"]] == [third.expert]
    for name in ("prompts.jsonl", "questions.jsonl"):
        assert {row["entry"] for row in read_jsonl(forgot / "adapter" / name)} == {"entry-002"}
    assert len(list(read_jsonl(finished_chain / "adapter" / "prompts.jsonl"))) > len(
        list(read_jsonl(forgot / "adapter/prompts.jsonl"))
    )


def test_the_folded_model_has_nothing_of_what_went(model, forgot):
    grown = AutoModelForCausalLM.from_pretrained(model)
    load_memory(grown, forgot / "adapter")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        folded = AutoModelForCausalLM.from_pretrained(forgot / "model")(ids).logits
        torch.testing.assert_close(folded, grown(ids).logits, rtol=0, atol=1e-5)
        with Memory.of(grown).as_base():
            assert (grown(ids).logits - folded).abs().max() > 1e-3


def test_what_went_is_still_asked_about_once(forgot):
    results = read_json(forgot / "results.json")
    assert (list(results["retention"]), list(results["forgotten"])) == (["entry-002"], ["entry-001"])
    assert (results["chain"]["nights"], results["chain"]["entries"]) == (
        ["entry-001", "entry-002", "entry-003"],
        ["entry-002"],
    )
    assert results["capacity"]["by_level"] == {"1": 1}
    assert results["consolidations"] == [{"entry": "entry-003", "level": 1, "holds": ["entry-002"]}]
    assert results["dataset"]["samples"]["memory"] == 0 and results["dataset"]["samples"]["earlier"] > 0


def test_the_grown_model_s_card_tells_what_the_last_night_measured(forgot):
    card = (forgot / "model" / "README.md").read_text("utf-8")
    after = read_ledger(forgot / "ledger.jsonl")[-1].metrics["after"]["earlier"]["entry-002"]
    assert f"{100 * after:.1f} % |" in card and "entry-001" not in card


def test_a_removal_that_is_rolled_back_leaves_all_as_it_was(model, finished_chain, capsys):
    folder = finished_chain.parents[1] / "kept"
    options = {"retention.max_skill_loss": 0, "seeding.learning_rate": 0.1}
    assert sleep.main(forget(model, finished_chain, folder, **options)) == 0
    assert "This night is rolled back, and entry-001 is still there" in " ".join(capsys.readouterr().out.split())
    results, before = (read_json(run / "results.json") for run in (folder, finished_chain))
    assert results["rolled_back"] and results["consolidations"] == []
    assert list(results["retention"]) == ["entry-001", "entry-002"] and "forgotten" not in results
    assert (results["chain"], results["capacity"]) == (before["chain"], before["capacity"])


def test_a_night_goes_on_from_there(model, forgot):
    folder = forgot.parent / "after"
    words = arguments(model, folder, "three", **{"continue_from": forgot, "memory.max_experts": 4})
    assert sleep.main([*words, "--no-report"]) == 0
    last = read_ledger(folder / "ledger.jsonl")[-1]
    assert (last.id, last.parents) == ("entry-004", ("entry-003",))


def test_a_chain_can_remove_entries_between_two_nights(model, tmp_path):
    words = chain(model, tmp_path / "life", "one", "two", **{"memory.max_experts": 3})
    tell_otherwise(tmp_path / "two.jsonl")
    nights = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    nights.append("forget:entry-001")
    words = [word for word in words if not word.startswith("--nights")]
    assert sleep.main([*words, f"--nights={json.dumps(nights)}"]) == 0
    ledger = read_ledger(tmp_path / "life" / "night-003" / "ledger.jsonl")
    assert [bool(entry.dropped) for entry in ledger] == [True, False, False]


def test_records_of_a_buffer_wait_again(model, tmp_path):
    from sleep_trl.data.documents import MemoryText
    from sleep_trl.wake.records import WakeRecord, now

    path, before = tmp_path / "wake.db", None
    for number, text in enumerate(("the cat of Mira is called Tolu", "the boat of Ben sleeps"), start=1):
        with WakeBuffer(path) as buffer:
            buffer.add([WakeRecord(MemoryText(f"r{number}", "talk", text), now())])
        folder = tmp_path / f"night{number}"
        given = {"memory.max_experts": 4, "seed": number} | ({"continue_from": before} if before else {})
        words = [w for w in arguments(model, folder, **given) if not w.startswith("--memories")]
        assert sleep.main([*words, f"--memories=wake:{path}", "--no-report"]) == 0
        before = folder
    assert sleep.main(forget(model, before, tmp_path / "forgot")) == 0
    with WakeBuffer(path) as buffer:
        assert {record.id: (record.state, record.detail) for record in buffer.records()} == {
            "r1": ("new", ""),
            "r2": ("consolidated", "entry-002"),
        }


@pytest.mark.parametrize(
    ("memories", "options", "message"),
    [
        ("forget:entry-002", {}, "nothing was learned together with or after entry-002"),
        ("forget:entry-001", {"continue_from": None}, "Name that run with --continue_from"),
        ("forget:entry-001", {"dream.rounds": 1, "dream.max_new_tokens": 8}, "no memories to dream about"),
    ],
)
def test_errors_are_reported_before_anything_begins(
    model, finished_chain, tmp_path, capsys, memories, options, message
):
    words = [
        word
        for word in forget(model, finished_chain, tmp_path / "run", memories, **options)
        if not word.endswith("=None")
    ]
    assert sleep.main(words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
