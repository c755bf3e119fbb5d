"""Levels of the memory: which experts are consolidated and when, and chains of nights that do so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sleep_trl.config import LevelsConfig
from sleep_trl.config.command_line import parse
from sleep_trl.launch import sleep
from sleep_trl.memory import ExpertRecord, Memory, load_memory
from sleep_trl.planning.chain import nights_of, unfinished
from sleep_trl.planning.consolidation import due_consolidations
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from sleep_trl.runs.files import read_json, read_jsonl
from sleep_trl.runs.ledger import LedgerEntry, expert_owners, owners, read_ledger
from tests.night.test_run import arguments
from tests.planning.test_chain import chain
from tests.tiny_runs import first_nights

PURE = {"seeding.alpha": 1}  # in two steps the policy's gradient is noise
CHUNKS = {"levels.chunks": "100,500,1000"} | PURE  # a night has some 230 tokens: level 1 is full in the third
NIGHTS = ("one", "two", "three")


# -- which, and when -------------------------------------------------------------------------------


def entry(number: int, expert: int, level: int = 1, **fields: object) -> LedgerEntry:
    given = {"date": "", "fingerprint": "", "base": "", "parents": (), "sources": (), "metrics": {}, "tokens": 100}
    return LedgerEntry(id=f"entry-{number:03}", expert=expert, level=level, **(given | fields))


def due(
    config: dict, entries: list[LedgerEntry], capacity: int = 8, tokens: int = 100, disabled: tuple[int, ...] = ()
) -> list:
    experts = {e.expert: ExpertRecord(e.expert, e.level, e.expert not in disabled) for e in expert_owners(entries)}
    found = due_consolidations(LevelsConfig(**config), entries, experts, capacity, tokens)
    return [(step.senders, step.receiver) for step in found]


FOUR = [entry(1, 0, 2), entry(2, 1, 2), entry(3, 2), entry(4, 3)]  # two in level 2, two in level 1; 400 tokens


def test_levels_fall_due_from_slow_to_fast() -> None:
    chunks = {"chunks": (50, 250, 500, 1000)}
    assert due(chunks, FOUR) == [((0, 1), 3), ((2, 3), 2)]  # 400 to 500: the boundary of level 1 and of level 2
    assert due(chunks, FOUR, tokens=99) == []
    assert due(chunks, FOUR, tokens=1000) == [((0, 1), 3), ((2, 3), 2)]  # each edge once, however often it is passed
    assert due({"chunks": (50, 250)}, FOUR) == []  # nobody takes in the slowest level
    assert due({}, FOUR) == []


def test_one_expert_waits_and_a_silenced_one_stays() -> None:
    chunks = {"chunks": (50, 250, 500, 1000)}
    assert due(chunks, FOUR[:3], tokens=200) == [((0, 1), 3)]
    assert due(chunks, FOUR, disabled=(0,)) == [((2, 3), 2)]


def test_tokens_of_a_night_that_was_rolled_back_are_ingested_again() -> None:
    back = entry(5, 4, dropped="now", rolled_back="it cost too much")
    chunks = {"chunks": (100, 500, 1000)}
    assert due(chunks, [*FOUR, back]) == due(chunks, FOUR) == [((2, 3), 2)]
    assert due(chunks, [*FOUR, entry(5, 4, dropped="now")]) == []  # dropped by a person: its boundary is past


def test_a_full_memory_makes_room_in_time() -> None:
    for policy in ("promote", "merge"):
        assert due({"when_full": policy}, FOUR, capacity=6) == []
    assert due({"when_full": "stop"}, FOUR, capacity=5) == []
    assert due({"when_full": "promote"}, FOUR, capacity=5) == [((2, 3), 2)]
    assert due({"when_full": "promote"}, FOUR[:3], capacity=4) == [((0, 1), 3)]
    assert due({"when_full": "promote", "chunks": (1000, 2000, 4000)}, FOUR[:3], capacity=4) == [
        ((0, 1), 2)
    ]  # the slowest
    assert due({"when_full": "promote"}, FOUR[1:3], capacity=3) == [((2, 1), 2)]  # no level has two
    assert due({"when_full": "merge"}, FOUR[:3], capacity=4) == [((0, 1), 2)]  # the fullest level
    assert due({"when_full": "merge"}, FOUR[2:3], capacity=2) == []
    assert due({"when_full": "merge"}, [], capacity=1) == []


def test_a_memory_with_blocks_makes_room_for_one_that_is_exchanged() -> None:
    """Otherwise the night would be refused: it needs a second free expert, and has none."""
    blocks = {"chunks": (1000, 2000, 4000), "learning_rate": 0.1}
    for policy in ("promote", "merge"):
        assert due({"when_full": policy} | blocks, FOUR, capacity=6) != []
        assert due({"when_full": policy} | blocks, FOUR, capacity=7) == []


def test_the_least_used_experts_merge() -> None:
    load = [[5, 1, 0, 9], [5, 2, 4, 9]]  # by layer and expert
    three = [entry(1, 0), entry(2, 1), entry(3, 2)]
    assert due({"when_full": "merge"}, three, capacity=4) == [((0, 1), 1)]  # nothing was counted: the oldest
    counted = [*three[:2], entry(3, 2, metrics={"after": {"load": load}})]
    assert due({"when_full": "merge"}, counted, capacity=4) == [((1, 2), 1)]
    undone = entry(4, 3, metrics={"after": {"load": [[0, 9, 9, 9]]}}, dropped="now", rolled_back="it cost too much")
    assert due({"when_full": "merge"}, [*counted, undone], capacity=4) == [((1, 2), 1)]


def test_what_an_entry_learned_is_found_however_often_it_was_consolidated() -> None:
    first, second, fourth = entry(1, 0), entry(2, 1), entry(4, 0)
    third = entry(3, 2, 2, holds=("entry-001", "entry-002"))
    fifth = entry(5, 3, 3, holds=("entry-003", "entry-004"))
    entries = [first, second, third, fourth, fifth]
    assert [owner.id for owner in owners(entries[:4]).values()] == ["entry-003"] * 3 + ["entry-004"]
    assert {owner.id for owner in owners(entries).values()} == {"entry-005"}
    assert [e.id for e in expert_owners(entries)] == ["entry-005"]
    undone = [*entries[:4], fifth.model_copy(update={"dropped": "now"})]
    assert [e.id for e in expert_owners(undone)] == ["entry-003", "entry-004"]


# -- a life ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_chain(model, tmp_path_factory) -> Path:
    """Three nights, of which the third finds level 1 full."""
    folder = tmp_path_factory.mktemp("chains") / "whole"
    assert sleep.main(chain(model, folder, *NIGHTS, **CHUNKS)) == 0
    return folder / "night-003"


def summary_of(folder: Path) -> list[dict]:
    """Return a ledger without its dates."""
    return [entry.model_dump(exclude={"date", "dropped"}) for entry in read_ledger(folder / "ledger.jsonl")]


def test_a_full_level_becomes_one_expert_of_the_next(model, finished_chain) -> None:
    before = read_ledger(finished_chain.parent / "night-002" / "ledger.jsonl")
    first, second, promoted, third = read_ledger(finished_chain / "ledger.jsonl")
    assert [first, second] == before  # their lines stay as they were
    assert first.tokens == second.tokens == third.tokens and 500 / 3 < third.tokens < 250
    assert promoted.holds == (first.id, second.id) and (promoted.level, promoted.expert) == (2, 2)
    assert promoted.sources == first.sources + second.sources and promoted.parents == ()
    assert (third.level, third.expert, third.parents) == (1, 0, (promoted.id,))  # a slot that was pruned
    description = read_json(finished_chain / "adapter" / "memory.json")
    assert description["experts"] == [
        {"index": 0, "level": 1, "is_enabled": True},
        {"index": 2, "level": 2, "is_enabled": True},
    ]
    memory = load_memory(AutoModelForCausalLM.from_pretrained(model), finished_chain / "adapter")
    assert memory.fingerprint(2) == promoted.fingerprint and memory.fingerprint(0) == third.fingerprint
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        folded = AutoModelForCausalLM.from_pretrained(finished_chain / "model")(input_ids=ids).logits
        assert (memory.model.eval()(input_ids=ids).logits - folded).abs().max() <= 1e-4


def read(memory: Memory, ids: list[int]) -> torch.Tensor:
    return memory.model.eval()(input_ids=torch.tensor([ids])).logits.log_softmax(-1)


def test_a_consolidation_learns_what_its_senders_say(model, finished_chain) -> None:
    """On their prompts the new expert comes closer to them than the model without them is."""
    rows = [
        row["prompt_ids"]
        for row in read_jsonl(finished_chain / "adapter" / "prompts.jsonl")
        if row["entry"] != "entry-004"
    ]
    teacher = load_memory(AutoModelForCausalLM.from_pretrained(model), finished_chain.parent / "night-002" / "adapter")
    student = load_memory(AutoModelForCausalLM.from_pretrained(model), finished_chain / "phases" / "seeded_level_2")
    assert list(student.records) == [2]  # saved in the middle, it is loaded without those that were replaced
    far = near = 0.0
    with torch.no_grad():
        for ids in rows:
            said, learnt = (
                m.model.eval()(input_ids=torch.tensor([ids])).logits.log_softmax(-1) for m in (teacher, student)
            )
            with student.as_base():
                alone = student.model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)
            near += torch.nn.functional.kl_div(learnt, said, log_target=True, reduction="sum").item()
            far += torch.nn.functional.kl_div(alone, said, log_target=True, reduction="sum").item()
    assert near < far


def test_the_matrix_of_a_chain_has_only_nights(finished_chain) -> None:
    results = read_json(finished_chain / "results.json")
    assert results["entry"] == "entry-004" and results["chain"]["entries"] == ["entry-001", "entry-002", "entry-004"]
    assert list(results["retention"]) == ["entry-001", "entry-002"]
    asked = {row["entry"] for row in read_jsonl(finished_chain / "adapter" / "questions.jsonl")}
    assert asked == {"entry-001", "entry-002", "entry-004"}
    card = (finished_chain / "model" / "README.md").read_text("utf-8")
    assert [f"| entry-00{number} |" in card for number in (1, 2, 3, 4)] == [True, True, False, True]


@pytest.mark.parametrize("stop", ["in the consolidation", "behind it", "in the night's own"])
def test_a_chain_interrupted_near_a_consolidation_ends_as_an_uninterrupted_one(
    model, finished_chain, tmp_path, monkeypatch, stop
) -> None:
    from sleep_trl.distributed.progress import StepBar

    folder, original = first_nights(finished_chain.parent, stop.replace(" ", "_")), StepBar.on_step_end

    def interrupt(self, args, state, control, **kwargs):
        name = Path(args.output_dir).name
        is_there = "night-003" in args.output_dir and state.global_step == 2
        if is_there and name == {"in the consolidation": "checkpoints-seeded_level_2"}.get(stop, "checkpoints"):
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    def never(*_: object) -> None:
        raise KeyboardInterrupt

    words = chain(model, folder, *NIGHTS, **CHUNKS, **{"seeding.save_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", interrupt)
        if stop == "behind it":
            patch.setattr("sleep_trl.night.consolidate.load_experts", never)
        assert sleep.main(words) == 130
    phases = {path.stem for path in (folder / "night-003" / "phases").glob("*.json")}
    assert ("seed_level_2" in phases) == (stop != "in the consolidation") and "seed" not in phases
    assert sleep.main([*words, "--resume"]) == 0
    assert summary_of(folder / "night-003") == summary_of(finished_chain)
    for name in ("adapter/experts.safetensors", "adapter/memory.json", "adapter/prompts.jsonl"):
        assert (folder / "night-003" / name).read_bytes() == (finished_chain / name).read_bytes(), name


@pytest.mark.parametrize(("policy", "level"), [("promote", 2), ("merge", 1)])
def test_a_full_memory_becomes_smaller_in_the_same_way(model, finished_chain, policy, level) -> None:
    """Two experts and one free slot: the same two are consolidated as when a chunk is full; the night takes a slot."""
    folder = first_nights(finished_chain.parent, policy)
    assert sleep.main(chain(model, folder, *NIGHTS, **{"levels.when_full": policy}, **PURE)) == 0
    made, expected = read_ledger(folder / "night-003" / "ledger.jsonl"), read_ledger(finished_chain / "ledger.jsonl")
    assert [e.fingerprint for e in made] == [e.fingerprint for e in expected]
    assert [e.level for e in made] == [1, 1, level, 1] and made[2].holds == ("entry-001", "entry-002")
    results = read_json(folder / "night-003" / "results.json")
    by_level = {"1": 2} if level == 1 else {"1": 1, "2": 1}
    assert results["capacity"] == {"max_experts": 3, "by_level": by_level, "blocks": 0}
    assert results["consolidations"] == [{"entry": "entry-003", "level": level, "holds": ["entry-001", "entry-002"]}]


def test_a_night_that_is_rolled_back_takes_its_consolidation_back_too(model, finished_chain) -> None:
    folder = first_nights(finished_chain.parent, "ruinous")
    ruinous = {"retention.max_skill_loss": 0.01, "seeding.learning_rate": 1.0}
    assert sleep.main(chain(model, folder, *NIGHTS, **CHUNKS, **ruinous, **{"levels.steps": 3})) == 0
    before, after = (folder / night for night in ("night-002", "night-003"))
    own, promoted = (
        read_json(after / "phases" / f"{name}.json")["result"]["history"] for name in ("seed", "seed_level_2")
    )
    assert max(row["step"] for row in own) == 2 and max(row["step"] for row in promoted) == 3
    for name in ("experts.safetensors", "memory.json", "prompts.jsonl", "questions.jsonl"):
        assert (after / "adapter" / name).read_bytes() == (before / "adapter" / name).read_bytes(), name
    entries = read_ledger(after / "ledger.jsonl")
    assert [e.id for e in expert_owners(entries)] == ["entry-001", "entry-002"]
    assert all(e.dropped and e.rolled_back for e in entries[2:]) and len(entries) == 4
    results = read_json(after / "results.json")
    assert results["chain"]["entries"] == ["entry-001", "entry-002"]
    assert results["capacity"]["by_level"] == {"1": 2}
    base = AutoModelForCausalLM.from_pretrained(model)
    memory = load_memory(base, after / "adapter")
    experts = {index: memory.records[index] for index in memory.records}
    tokens = entries[0].tokens
    again = due_consolidations(LevelsConfig(chunks=(100, 500, 1000)), entries, experts, 3, tokens)
    assert [step.senders for step in again] == [(0, 1)]


def test_the_plan_names_what_is_due(model, finished_chain) -> None:
    folder = first_nights(finished_chain.parent, "planned")

    def planned(**options: object) -> tuple[str, ...]:
        (night,) = unfinished(nights_of(parse(chain(model, folder, *NIGHTS, **options))))
        return preflight(RunInputs(night)).consolidations

    assert planned() == ()
    assert planned(**CHUNKS) == ("experts 0, 1 are consolidated into one of level 2: a chunk of 500 tokens is full",)
    assert planned(**{"levels.when_full": "merge"}) == (
        "experts 0, 1 are consolidated into one of level 1: the memory is full",
    )


def test_a_memory_without_any_room_is_refused_before_weights_are_loaded(model, finished_chain, tmp_path) -> None:
    before = finished_chain.parent / "night-002"

    def refused(**options: object) -> str:
        given = {"continue_from": before, "memory.max_experts": 2} | options
        with pytest.raises(
            ValueError, match=r"holds 2 experts and has room for 2\. Give --memory.max_experts 3"
        ) as caught:
            preflight(RunInputs(parse(arguments(model, tmp_path / "run", **given))))
        return str(caught.value)

    assert "--levels.when_full promote, which itself needs a free one" in refused()
    for policy in ("promote", "merge"):
        assert "Consolidation needs a free expert too" in refused(**{"levels.when_full": policy})


def test_a_chain_that_consolidates_needs_three_slots(model, tmp_path) -> None:
    def checked(capacity: int, **options: object) -> None:
        words = chain(model, tmp_path / "chain", *"abcdef", **{"memory.max_experts": capacity} | options)
        unfinished(nights_of(parse(words)))

    checked(6)
    for options in ({"levels.when_full": "promote"}, {"levels.when_full": "merge"}, CHUNKS):
        checked(3, **options)
        with pytest.raises(
            ValueError,
            match=r"room for 3 experts and 1 free to begin with, but .* 2 and holds 0\. Give .*max_experts 3",
        ):
            checked(2, **options)
    blocks = {"levels.when_full": "promote", "levels.learning_rate": 0.1} | CHUNKS
    checked(6, **blocks)
    with pytest.raises(
        ValueError, match=r"room for 6 experts and 2 free to begin with, but .* 5 and holds 2\. Give .*experts 6"
    ):
        checked(5, **blocks)
    with pytest.raises(ValueError, match=r"the 6 to run need 6 experts, .* Or consolidate experts .*promote"):
        checked(5)
