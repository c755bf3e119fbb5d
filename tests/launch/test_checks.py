"""What the trainer and the rewards would refuse is refused before any weight is loaded."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from sleep_trl.config.command_line import parse
from sleep_trl.doctor.report import Case
from sleep_trl.doctor.run import check_rewards
from sleep_trl.launch import sleep
from sleep_trl.launch.checks import check_trainer
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.preflight import preflight
from tests.tiny_runs import arguments, write_model

PLUGIN = """
def fine(completions, reference, part, level, **columns):
    assert reference == ["the cat sleeps while it eats hats."] * 2 and part == ["memory"] * 2, "unlike a night's rows"
    return [float(text == given) * of for text, given, of in zip(completions, reference, level)]

async def fine_async(completions, completion_ids, trainer_state, **columns):
    return [float(len(ids)) + trainer_state.global_step for ids in completion_ids]

def broken(completions, **columns):
    return [float(len(text) / 0) for text in completions]

def silent(completions, **columns):
    return [None] * len(completions)

async def silent_async(completions, **columns):
    return [None] * len(completions)

def partly_silent(completions, **columns):
    return [None, 1.0]

def too_few(completions, **columns):
    return [1.0]
"""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))


def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: object) -> tuple[int, str]:
    memories = tmp_path / "docs.jsonl"
    memories.write_text(json.dumps({"text": "the cat sleeps while it eats hats.", "level": 0.5}))
    given = {"model": write_model(tmp_path / "model"), "memories": memories, "output_dir": tmp_path / "run", **options}
    code = sleep.main([*arguments(**given), "--dry_run"])
    assert not (tmp_path / "run").exists()
    return code, " ".join(capsys.readouterr().err.split())


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Return a plan as printed, without the lines around and between its cells."""
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"optim": "adam_w"}, "adam_w"),
        ({"report_to": "wandbb"}, "wandbb"),
        ({"lr_scheduler_kwargs": {"min_rate": 1}}, "min_rate"),
    ],
)
def test_arguments_of_the_trainer_are_made_before_the_model_is_loaded(tmp_path, capsys, extra, reason):
    code, shown = refuse(tmp_path, capsys, seeding__extra=json.dumps(extra))
    assert code == 2 and "seeding: the trainer cannot be configured" in shown and reason in shown


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named(tmp_path, capsys):
    code, shown = refuse(tmp_path, capsys, seeding__extra='{"report_to": "wandb"}')
    assert code == 2 and "wandb" in shown and "install what it needs" in shown


def test_arguments_that_work_are_taken(tmp_path, capsys):
    extra = {"optim": "sgd", "adam_beta2": 0.9, "report_to": "none"}
    assert refuse(tmp_path, capsys, seeding__extra=json.dumps(extra))[0] == 0


def test_a_grpo_config_of_trl_is_taken_as_it_is(tmp_path, capsys, caplog):
    """With all of its arguments, most of which are TRL's defaults."""
    chosen = {"max_steps": 4, "max_completion_length": 8, "num_generations": 4, "per_device_train_batch_size": 4}
    config = GRPOConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, **chosen)
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(config.to_dict()))
    options = dict.fromkeys(f"seeding__{name}" for name in ("steps", "num_generations", "max_completion_length"))
    code, shown = refuse(tmp_path, capsys, seeding__extra=tmp_path / "grpo.yaml", **options)
    assert code == 0, shown
    assert "grpo.yaml: generation_batch_size, gradient_accumulation_steps, " in caplog.text


@pytest.mark.parametrize(("name", "reason"), [("broken", "ZeroDivisionError"), ("too_few", "1 rewards for 2")])
def test_a_reward_that_fails_is_refused(tmp_path, capsys, name, reason):
    (tmp_path / "mine.py").write_text(PLUGIN)
    code, shown = refuse(tmp_path, capsys, rewards=json.dumps([f"{tmp_path}/mine.py:{name}"]))
    assert code == 2 and "tried on two made-up rows" in shown and reason in shown
    abstaining = [{"name": f"{tmp_path}/mine.py:{name}", "on_error": "abstain"}]
    assert refuse(tmp_path, capsys, rewards=json.dumps(abstaining))[0] == 0


@pytest.mark.parametrize("name", ["fine", "fine_async"])
def test_a_reward_gets_rows_like_those_of_the_night(tmp_path, capsys, name):
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert refuse(tmp_path, capsys, rewards=json.dumps(["imitation", f"{tmp_path}/mine.py:{name}"])) == (0, "")


@pytest.mark.parametrize(("name", "is_silent"), [("silent", True), ("silent_async", True), ("partly_silent", False)])
def test_a_reward_without_a_value_is_a_warning(tmp_path, capsys, name, is_silent):
    (tmp_path / "mine.py").write_text(PLUGIN)
    memories = tmp_path / "docs.jsonl"
    memories.write_text(json.dumps({"text": "the cat sleeps while it eats hats.", "level": 0.5}))
    given = {"model": write_model(tmp_path / "model"), "memories": memories, "output_dir": tmp_path / "run"}
    words = arguments(**given, rewards=json.dumps(["imitation", f"{tmp_path}/mine.py:{name}"]))
    inputs = RunInputs(parse(words))
    warned = [w for w in preflight(inputs, check_trainer).warnings if "None for two made-up rows" in w]
    assert len(warned) == is_silent and all(f"mine.py:{name}" in w for w in warned)
    found = check_rewards(Case(config=inputs.config, check_rewards=check_trainer))
    assert (found.state, found.remedy) == (("warning", "Check when it returns None.") if is_silent else ("ok", ""))
    assert sleep.main([*words, "--dry_run"]) == 0
    assert ("None for two made-up rows" in shown(capsys)) == is_silent


def test_only_a_report_that_is_asked_for_needs_plotly(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert refuse(tmp_path, capsys) == (0, "")
    code, shown = refuse(tmp_path, capsys, report=True)
    assert code == 2 and "pip install 'sleep-trl[report]'" in shown
