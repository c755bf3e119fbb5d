"""Rewards in a whole night: columns of the memories, reward models, and all of `trl.rewards` by name."""

import json
import shutil
from importlib.util import find_spec

import pytest
from transformers import TrainerControl, TrainerState

from sleep_trl.launch import sleep
from sleep_trl.runs.files import read_json, read_jsonl, write_jsonl
from sleep_trl.trainers import KnowledgeSeedingConfig
from sleep_trl.trainers.knowledge_seeding.from_config import RolloutsBegin
from tests.night.test_run import arguments, results_of
from tests.rewards.test_reward_model import save
from tests.rewards.test_trl_rewards import EXPECTED, NEED_MATH_VERIFY, PARAMS

PLUGIN = """
def fitting(completions, level, part, tags=None, **columns):
    assert all(part_of == "memory" for part_of in part), part  # the others have no level
    assert tags is not None and len(tags) == len(level) == len(completions)
    return [float(each) for each in level]


def anything(completions, part, level=None, **columns):
    return [0.0 if (each is None) == (part_of != "memory") else -1.0 for each, part_of in zip(level, part)]
"""


def night(model, tmp_path, rewards, columns=(), **options):
    """Return the arguments of a night whose memories have columns."""
    words = arguments(model, tmp_path / "run", **{"seeding.steps": 2, "seeding.save_steps": 2} | options)
    memories = tmp_path / "one.jsonl"
    write_jsonl(memories, [row | dict(columns) for row in read_jsonl(memories)])
    return [*words, "--no-report", f"--rewards={json.dumps(rewards)}"]


def means(tmp_path, name):
    return [row[f"rewards/{name}/mean"] for row in results_of(tmp_path / "run")["history"] if "reward" in row]


def test_columns_of_the_memories_reach_rewards_as_in_trl(model, tmp_path, capsys) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    rewards = ["imitation", f"{plugin}:fitting", f"{plugin}:anything"]
    columns = {"level": 0.25, "tags": ["a", "b"], "stop": "taken"}
    assert sleep.main(night(model, tmp_path, rewards, columns)) == 0
    assert {*means(tmp_path, "fitting")} == {0.25} and {*means(tmp_path, "anything")} == {0.0}
    assert "Rewards do not get the column stop of the memories" in " ".join(capsys.readouterr().out.split())


def test_a_reward_that_gave_no_value_is_named_at_the_end(model, tmp_path, capsys) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("def nones(completions, **columns):\n    return [None] * len(completions)\n")
    assert sleep.main(night(model, tmp_path, ["imitation", f"{plugin}:nones"])) == 0
    printed = capsys.readouterr().out
    assert "Reward 'nones' gave no value for any completion" in printed and "Reward 'imitation'" not in printed


def test_the_log_says_when_rollouts_begin(capsys) -> None:
    arguments = KnowledgeSeedingConfig("out", alpha=0.75, lmbda=0.5, rollout_start=0.5, use_cpu=True, bf16=False)
    for step in range(4):
        RolloutsBegin().on_step_begin(arguments, TrainerState(global_step=step, max_steps=4), TrainerControl())
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.startswith("Rollouts begin: the loss now includes GRPO's loss (weight 0.25)") == (step == 2)
        assert ("divergence from the teacher on rollouts (weight 0.375)" in printed) == (step == 2)
    arguments.rollout_start = 0.0  # rollouts from the first step: the loss does not change
    RolloutsBegin().on_step_begin(arguments, TrainerState(global_step=0, max_steps=4), TrainerControl())
    assert not capsys.readouterr().out


def test_a_column_that_is_missing_is_named_before_anything_begins(model, tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert sleep.main(night(model, tmp_path, [f"{tmp_path / 'mine.py'}:fitting"], {"tags": ["a"]})) == 2
    shown = capsys.readouterr().err
    assert "needs level, which the rows do not have" in shown and ", tags. Add it as a key to the memories" in shown
    assert not (tmp_path / "run").exists()


def test_columns_come_through_a_wake_buffer(model, tmp_path) -> None:
    from sleep_trl.data.sources import read_memories
    from sleep_trl.wake import WakeBuffer, add_path

    (tmp_path / "mine.py").write_text(PLUGIN)
    words = night(model, tmp_path, [f"{tmp_path / 'mine.py'}:fitting"], {"level": 0.5, "tags": ["a"]})
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        add_path(buffer, tmp_path / "one.jsonl")
    words = [word for word in words if not word.startswith("--memories")]
    assert sleep.main([*words, f"--memories=wake:{tmp_path / 'wake.db'}"]) == 0
    assert {*means(tmp_path, "fitting")} == {0.5}
    [ingested] = (tmp_path / "run" / "phases").glob("ingested.jsonl")
    assert [memory.columns for memory in read_memories(str(ingested))] == [{"level": 0.5, "tags": ["a"]}] * 2


def test_a_reward_model_by_name(model, tmp_path) -> None:
    folder = save(tmp_path / "scorer", num_labels=1)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    assert sleep.main(night(model, tmp_path, ["imitation", {"name": str(folder), "weight": 0.1}])) == 0
    assert means(tmp_path, "scorer") and all(mean != 0 for mean in means(tmp_path, "scorer"))


@pytest.mark.parametrize("name", EXPECTED)
def test_every_reward_of_trl_runs_by_name(model, tmp_path, capsys, name) -> None:
    """`solution` is a column of the memories. Without math_verify, what needs it is refused before the night."""
    reward = {"name": f"trl.rewards.{name}", "params": PARAMS.get(name, {})}
    code = sleep.main(night(model, tmp_path, ["imitation", reward], {"solution": "\\boxed{4}"}))
    if name in NEED_MATH_VERIFY and find_spec("math_verify") is None:
        assert code == 2 and not (tmp_path / "run").exists()
        shown = capsys.readouterr().err
        assert "needs a package that is not installed" in shown and "pip install 'math-verify[antlr4_13_2]'" in shown
        return
    assert code == 0
    [logged] = {key for row in results_of(tmp_path / "run")["history"] for key in row if key.endswith("/mean")} - {
        "rewards/imitation/mean"
    } & {key for row in results_of(tmp_path / "run")["history"] for key in row if key.startswith("rewards/")}
    assert means(tmp_path, logged.split("/")[1])


def test_a_reward_that_calls_sys_exit_does_not_end_the_night_as_done(model, tmp_path, capsys) -> None:
    leaving = "def leaving(completions, **columns):\n    return [0, 0] if len(completions) == 2 else sys.exit(0)\n"
    (tmp_path / "mine.py").write_text(f"import sys\n{leaving}")  # not when it is tried before the night
    assert sleep.main(night(model, tmp_path, [f"{tmp_path / 'mine.py'}:leaving"])) == 2
    shown = capsys.readouterr().err
    assert "Reward 'leaving' failed: it raised SystemExit at" in shown and "resume with the same command" in shown


NAME = "[/x] [red]\x1b]0;owned\x07\u202e"


def test_names_are_data_in_a_terminal(model, tmp_path, capsys) -> None:
    """Markup and control codes in ids, sources, folders and files: before, during and after a night."""
    shutil.copytree(model, tmp_path / NAME / "model")
    words = arguments(tmp_path / NAME / "model", tmp_path / NAME / "run", **{"seeding.steps": 1})
    memories = tmp_path / NAME / "one.jsonl"
    rows = [row | {"id": f"{NAME} {number}", "source": NAME} for number, row in enumerate(read_jsonl(memories))]
    write_jsonl(memories, [*rows, {"id": NAME, "text": "?", "[/y]": 1}])  # nothing can be written about the last
    assert sleep.main([*words, "--dry_run"]) == 0 and sleep.main(words) == 0
    assert sleep.main(words) == 2  # the folder is taken
    seen = capsys.readouterr()
    shown = seen.out + seen.err
    assert "[/x] [red]⟨U+001B⟩]0;owned⟨U+0007⟩⟨U+202E⟩" in "".join(shown.split("\n"))
    assert not any(code in shown for code in ("\x1b]", "\x07", "\u202e"))
