"""Rewards in a whole night: columns of the memories, reward models, and all of `trl.rewards` by name."""

import json
from importlib.util import find_spec

import pytest

from sleep_trl.launch import sleep
from sleep_trl.runs.files import read_json, read_jsonl, write_jsonl
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
    assert means(tmp_path, "fitting") == pytest.approx([0.25] * 2) and means(tmp_path, "anything") == [0.0] * 2
    assert "Rewards do not get the column stop of the memories" in " ".join(capsys.readouterr().out.split())


def test_a_column_that_is_missing_is_named_before_anything_begins(model, tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert sleep.main(night(model, tmp_path, [f"{tmp_path / 'mine.py'}:fitting"], {"tags": ["a"]})) == 2
    shown = capsys.readouterr().err
    assert "needs level, which the rows do not have" in shown and "memory_id, template, stop, tags" in shown
    assert "Add it as a key to the memories" in shown and not (tmp_path / "run").exists()


def test_columns_come_through_a_wake_buffer(model, tmp_path) -> None:
    from sleep_trl.data.documents import read_memories
    from sleep_trl.wake import WakeBuffer, add_path

    (tmp_path / "mine.py").write_text(PLUGIN)
    words = night(model, tmp_path, [f"{tmp_path / 'mine.py'}:fitting"], {"level": 0.5, "tags": ["a"]})
    with WakeBuffer(tmp_path / "wake.db") as buffer:
        add_path(buffer, tmp_path / "one.jsonl")
    words = [word for word in words if not word.startswith("--memories")]
    assert sleep.main([*words, f"--memories=wake:{tmp_path / 'wake.db'}"]) == 0
    assert means(tmp_path, "fitting") == pytest.approx([0.5] * 2)
    [ingested] = (tmp_path / "run" / "phases").glob("ingested.jsonl")
    assert [memory.columns for memory in read_memories(str(ingested))] == [{"level": 0.5, "tags": ["a"]}] * 2


def test_a_reward_model_by_name(model, tmp_path) -> None:
    folder = save(tmp_path / "scorer", num_labels=1)
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    assert sleep.main(night(model, tmp_path, ["imitation", {"name": str(folder), "weight": 0.1}])) == 0
    assert all(mean != 0 for mean in means(tmp_path, "scorer"))


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
    assert len(means(tmp_path, logged.split("/")[1])) == 2
