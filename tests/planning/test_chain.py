"""A chain of nights on a tiny model: what runs, what is skipped, and what is refused before it begins."""

import json
import shutil
from pathlib import Path

import pytest

from sleep_trl.config.command_line import explain, parse
from sleep_trl.launch import sleep
from sleep_trl.planning.chain import nights_of, quarantine, unfinished
from sleep_trl.publish.unlearn import set_enabled
from sleep_trl.runs.files import read_json, write_json
from sleep_trl.runs.finished import FinishedRun
from sleep_trl.runs.folder import RunFolder
from sleep_trl.runs.ledger import read_ledger
from tests.night.test_run import arguments
from tests.tiny_runs import first_nights


def chain(model: Path, folder: Path, *nights: str, **options: object) -> list[str]:
    """Return the arguments of a life, whose nights have memories of their names."""
    given = {"memory.max_experts": 3, "seeding.steps": 2, "evaluation.batch_size": 8} | options
    for night in nights:
        words = arguments(model, folder, night, **given)
    files = [str(folder.parent / f"{night}.jsonl") for night in nights]
    kept = [word for word in words if not word.startswith("--memories=")]
    return [*kept, "--no-report", f"--nights={json.dumps(files)}"]


def fingerprints(folder: Path) -> list[str]:
    return [entry.fingerprint for entry in read_ledger(folder / "ledger.jsonl")]


@pytest.fixture(scope="module")
def finished_chain(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chains") / "whole"
    assert sleep.main(chain(model, folder, "one", "two", "three")) == 0
    return folder


def test_every_night_continues_the_one_before(finished_chain) -> None:
    folders = sorted(path.name for path in finished_chain.iterdir())
    assert folders == ["night-001", "night-002", "night-003"]
    ledgers = [read_ledger(finished_chain / name / "ledger.jsonl") for name in folders]
    assert [len(entries) for entries in ledgers] == [1, 2, 3]
    assert [source.id for entry in ledgers[-1] for source in entry.sources] == [
        "one-0", "one-1", "two-0", "two-1", "three-0", "three-1",
    ]  # fmt: skip
    results = read_json(finished_chain / "night-003" / "results.json")["chain"]
    assert [len(row) for row in results["recall"]] == [1, 2, 3] and len(results["base_skill"]) == 4
    assert results["entries"] == ["entry-001", "entry-002", "entry-003"]
    assert read_json(finished_chain / "night-001" / "results.json")["chain"]["backward_transfer"] is None


def test_a_chain_s_folder_continues_its_newest_night(model, finished_chain, tmp_path) -> None:
    words = [word for word in arguments(model, tmp_path / "next", "four") if not word.startswith("--memory.max")]
    config = parse([*words, f"--continue_from={finished_chain}"])
    assert [night.continue_from for night in nights_of(config)] == [finished_chain / "night-003"]
    begun = RunFolder(tmp_path / "next").config
    write_json(begun, config.model_dump(mode="json") | {"continue_from": str(finished_chain / "night-002")})
    resumed = parse([*words, f"--continue_from={finished_chain}", "--resume"])  # after a further night of the chain
    assert [night.continue_from for night in nights_of(resumed)] == [finished_chain / "night-002"]
    one = config.model_copy(update={"continue_from": finished_chain / "night-001"})
    assert nights_of(one)[0].continue_from == finished_chain / "night-001"


def test_it_is_what_single_nights_would_have_been(model, finished_chain, tmp_path) -> None:
    before: list[str] = []
    for number, night in enumerate(("one", "two"), start=1):
        options = {"memory.max_experts": 3, "seeding.steps": 2, "evaluation.batch_size": 8}
        folder = tmp_path / f"{number}"
        assert sleep.main([*arguments(model, folder, night, **options), "--no-report", *before]) == 0
        before = [f"--continue_from={folder}"]
    assert fingerprints(tmp_path / "2") == fingerprints(finished_chain / "night-002")


def test_finished_nights_are_skipped_and_more_can_follow(model, tmp_path, capsys) -> None:
    folder = tmp_path / "life"
    assert sleep.main(chain(model, folder, "one")) == 0
    first = (folder / "night-001" / "results.json").read_bytes()
    assert sleep.main(chain(model, folder, "one", "two")) == 0
    assert (folder / "night-001" / "results.json").read_bytes() == first
    assert "night-001 is finished" in capsys.readouterr().err
    assert sleep.main(chain(model, folder, "one", "two")) == 0  # nothing is left to do
    assert "Recall after each of 2 nights" in capsys.readouterr().out


def test_a_chain_resumes_the_interrupted_night(model, finished_chain, tmp_path, monkeypatch, capsys) -> None:
    from sleep_trl.distributed.progress import StepBar

    original, folder, nights = StepBar.on_step_end, tmp_path / "life", []

    def interrupt(self, args, state, control, **kwargs):
        nights.append(args.output_dir)
        if "night-002" in args.output_dir:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    words = chain(model, folder, "one", "two", "three")
    with monkeypatch.context() as patch:
        patch.setattr(StepBar, "on_step_end", interrupt)
        assert sleep.main(words) == 130
    assert not (folder / "night-002" / "results.json").exists()
    capsys.readouterr()
    assert sleep.main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert sleep.main([*words, "--resume"]) == 0
    assert fingerprints(folder / "night-003") == fingerprints(finished_chain / "night-003")


def plan(*words: str) -> list:
    return unfinished(nights_of(parse(words)))


def test_errors_are_reported_before_the_first_night(model, finished_chain, tmp_path) -> None:
    words = chain(model, tmp_path / "life", "one", "two", **{"memory.max_experts": 1})
    with pytest.raises(ValueError, match=r"--memory\.max_experts 2 or more"):
        plan(*words)
    (tmp_path / "two.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(ValueError, match=r"two\.jsonl, line 1"):
        plan(*chain(model, tmp_path / "life", "one"), f"--nights={tmp_path / 'two.jsonl'}")
    (tmp_path / "life").mkdir()
    assert not list((tmp_path / "life").iterdir())


@pytest.mark.parametrize(
    ("order", "needed"), [(("one", "forget:entry-001", "two"), 2), (("one", "two", "forget:x"), 3)]
)
def test_a_night_that_takes_back_needs_its_expert_only_meanwhile(model, tmp_path, order, needed) -> None:
    words = [word for word in chain(model, tmp_path / "life", "one", "two") if not word.startswith("--nights")]
    nights = json.dumps([name if name.startswith("forget") else str(tmp_path / f"{name}.jsonl") for name in order])
    assert len(plan(*words, f"--nights={nights}", f"--memory.max_experts={needed}")) == 3
    with pytest.raises(ValueError, match=rf"--memory\.max_experts {needed} or more"):
        plan(*words, f"--nights={nights}", f"--memory.max_experts={needed - 1}")


def test_a_finished_night_stays_what_it_was_about(model, finished_chain, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"night-001 is finished with memories .*one\.jsonl, but now .*two\.jsonl is given"
    ):
        plan(*chain(model, finished_chain, "two", "one"))
    with pytest.raises(ValueError, match="need 1 experts, but the memory has room for 3 and holds 3"):
        plan(*chain(model, finished_chain, "one", "two", "three", "four"))


def test_a_night_does_not_depend_on_disabled_entries(model, finished_chain) -> None:
    folder = first_nights(finished_chain, "disabled")
    run = FinishedRun.read(folder / "night-002")
    set_enabled(run, run.entries[0], False)
    assert sleep.main(chain(model, folder, "one", "two", "three")) == 0
    parents = [entry.parents for entry in read_ledger(folder / "night-003" / "ledger.jsonl")]
    assert parents == [(), ("entry-001",), ("entry-002",)]


def test_a_gap_in_a_chain_is_refused(model, finished_chain, tmp_path) -> None:
    folder = shutil.copytree(finished_chain, finished_chain.parent / "gap")
    (folder / "night-002" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"night-003 is finished, but .*night-002, which it continues, is not"):
        plan(*chain(model, folder, "one", "two", "three"))


@pytest.mark.parametrize(
    ("taken", "number"), [([], 1), (["quarantined-002"], 3), (["aside-001", "quarantined-001-kept"], 2)]
)
def test_a_quarantined_night_gets_the_number_after_the_last(tmp_path, taken, number) -> None:
    for name in [*taken, "night-004"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    folder = quarantine(tmp_path / "night-004")
    assert folder.name == f"quarantined-{number:03}"
    assert (folder / "file").is_file() and not (tmp_path / "night-004").exists()


def test_memories_and_nights_agree() -> None:
    words = ["--model=m", "--output_dir=x"]
    assert parse([*words, "--nights=a.jsonl,b.jsonl"]).nights == ("a.jsonl", "b.jsonl")
    assert parse([*words, "--nights=a.jsonl", "--memories=a.jsonl"]).memories == "a.jsonl"
    with pytest.raises(ValueError) as caught:
        parse([*words, "--nights=a.jsonl,b.jsonl", "--memories=c.jsonl"])
    assert "nights begins with a.jsonl, but memories is c.jsonl" in explain(caught.value)


def test_the_command_line_takes_the_place_of_the_file(tmp_path) -> None:
    file = tmp_path / "life.yaml"
    file.write_text("model: m\nmemories: a.jsonl\n")
    assert parse(["--config", str(file), "--nights=b.jsonl,c.jsonl"]).memories == "b.jsonl"
    file.write_text("model: m\nnights: [a.jsonl, b.jsonl]\n")
    assert parse(["--config", str(file)]).nights == ("a.jsonl", "b.jsonl")
    assert parse(["--config", str(file), "--memories=c.jsonl"]).nights == ()


def test_a_resumed_night_keeps_the_options_it_was_begun_with(tmp_path) -> None:
    run = tmp_path / "run"
    words = ["--model=m", "--memories=docs.jsonl", f"--output_dir={run}"]
    begun_with = parse([*words, "--seed=7", "--seeding.steps=3", '--seeding.extra={"adam_beta2": 0.9}'])
    write_json(run / "config.json", begun_with.model_dump(mode="json"))
    (resumed,) = nights_of(parse([*words, "--resume", "--seeding.logging_steps=1"]))
    assert (resumed.seed, resumed.seeding.steps, resumed.seeding.extra) == (7, 3, {"adam_beta2": 0.9})
    assert resumed.seeding.logging_steps == 1 and resumed.resume
    assert "max_experts" not in resumed.memory.model_fields_set  # a default is still not given
    (other,) = nights_of(parse([*words, "--resume", "--seed=8"]))
    assert other.seed == 8  # which `check_output` refuses


def test_an_option_that_was_given_stays_given(tmp_path) -> None:
    run = tmp_path / "run"
    words = ["--model=m", "--memories=docs.jsonl", f"--output_dir={run}"]
    begun_with = parse([*words, "--memory.max_experts=8"])  # the default, but not that of the run it may continue
    write_json(RunFolder(run).config, begun_with.model_dump(mode="json"))
    write_json(RunFolder(run).given, begun_with.model_dump(mode="json", exclude_unset=True))
    (resumed,) = nights_of(parse([*words, "--resume"]))
    assert resumed.memory.model_fields_set == {"max_experts"}


def test_a_finished_chain_of_0_1_is_shown_again(model, finished_chain, capsys) -> None:
    results = RunFolder(finished_chain / "night-003").results
    written = read_json(results)
    try:
        write_json(results, {"life" if key == "chain" else key: value for key, value in written.items()})
        assert sleep.main(chain(model, finished_chain, "one", "two", "three")) == 0
    finally:
        write_json(results, written)
    assert "after night" in capsys.readouterr().out
