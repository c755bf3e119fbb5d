"""Preflight: the plan's numbers are the model's, and a good run passes whatever its shape."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from sleep_trl.config import RunConfig
from sleep_trl.config.command_line import parse
from sleep_trl.doctor import Case
from sleep_trl.doctor.run import check_memories
from sleep_trl.launch import sleep
from sleep_trl.launch.checks import check_rewards
from sleep_trl.memory import MemorySpec, attach
from sleep_trl.models.inspection import read_header
from sleep_trl.planning.inputs import RunInputs
from sleep_trl.planning.output_dir import changed_options
from sleep_trl.planning.plan import render
from sleep_trl.planning.preflight import make_plan, preflight
from sleep_trl.runs.files import write_json
from tests.tiny import tiny_model
from tests.tiny_runs import arguments, write_finished_run, write_memories, write_model


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


def config_of(model: Path, folder: Path, **options: object) -> RunConfig:
    memories = write_memories(folder / "docs.jsonl")
    given = {"model": model, "memories": memories, "output_dir": folder / "run", **options}
    return parse(arguments(**given))


@pytest.mark.parametrize("form", ["llama", "phi3", "gpt2"])
def test_plan_counts_what_a_memory_counts(tmp_path: Path, form: str) -> None:
    plan = preflight(RunInputs(config_of(write_model(tmp_path / "model", form), tmp_path)), check_rewards)
    memory = attach(tiny_model(form), MemorySpec(width=8, max_experts=2))
    memory.activate()
    counted = memory.count_parameters()
    assert plan.base_parameters == counted["base"]
    assert plan.added_parameters == counted["trainable"] == counted["added"]
    assert plan.trainable_share == counted["added"] / (counted["base"] + counted["added"])
    assert plan.adapter_bytes == 4 * counted["added"]
    assert (plan.layers, plan.hidden_size, plan.context) == (2, 32, 128)
    assert plan.architecture == type(memory.model).__name__
    assert not (tmp_path / "run").exists()


LEXICAL = {"name": "imitation", "params": {"gamma": 0.2, "judge": {"name": "lexical"}}}


@pytest.mark.parametrize(
    ("reward", "has_model"),
    [
        ("imitation", False),
        (LEXICAL, False),
        ("my.py:f", False),
        ({"name": "my.py:f", "params": {"slack": 4}}, False),
        ({"name": "my.py:make", "params": {"model": "org/name"}}, True),
        ({"name": "imitation", "params": {"judge": {"name": "lm", "params": {"model": "org/name"}}}}, True),
        ({"name": "imitation", "params": {"judge": "sentence_transformer"}}, True),
        ("org/name", True),
    ],
)
def test_only_models_of_rewards_are_said_not_to_be_counted(
    model: Path, tmp_path: Path, reward: object, has_model: bool
) -> None:
    plan = preflight(RunInputs(config_of(model, tmp_path, rewards=json.dumps([reward]))))
    assert plan.peak.not_counted == (("models of rewards",) if has_model else ())


def test_plan_counts_windows_samples_and_rollouts(model: Path, tmp_path: Path) -> None:
    config = config_of(
        model,
        tmp_path,
        dataset__window=16,
        dataset__window_overlap=0,
        seeding__steps=12,
        max_context=100,
    )
    text = "the cat sleeps. " * 12  # 48 tokens: a full stop is one, as a word is
    Path(config.memories).write_text(json.dumps({"text": text}), "utf-8")
    plan = preflight(RunInputs(config))
    assert (plan.memories, plan.memory_tokens, plan.windows) == (1, 48, 3)
    assert plan.samples == 3 * 4 * (2 + 4)  # of each window and sentence, two answers, and the statement for each cue
    assert (plan.steps, plan.rows, plan.rollouts) == (12, 96, 64)  # rollouts in the last two steps
    assert (plan.context, plan.window) == (100, 16)
    passes = RunInputs(config.model_copy(update={"seeding": config.seeding.model_copy(update={"steps": None})}))
    plan = preflight(passes)
    assert plan.samples == 3 * 4 * 6 and (plan.passes, plan.steps) == (4, 3 * 4 * 6 * 4 // 6)
    few = RunInputs(config.model_copy(update={"seeding": config.seeding.model_copy(update={"steps": 3})}))
    assert preflight(few).samples == 3 * 6  # no more than the rows about memories


def test_the_plan_shows_the_learning_rate_and_warns_of_one_for_whole_models(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock = tmp_path / "grpo.yaml"
    stock.write_text("learning_rate: 1.0e-6\nnum_train_epochs: 1\n")
    plan = preflight(RunInputs(config_of(model, tmp_path, seeding__steps=None, seeding__extra=stock)))
    [message] = caplog.messages
    assert message.startswith("seeding.learning_rate: 1e-06 is far below 0.002, the default for a new expert")
    assert message.endswith("give --seeding.learning_rate 0.002.")
    console = Console(width=400, record=True, file=StringIO())
    console.print(render(plan))
    shown = " ".join(console.export_text().split())
    assert "learning rate │ 1e-06" in shown and "(1 pass)," in shown
    caplog.clear()
    preflight(RunInputs(config_of(model, tmp_path, seeding__learning_rate=1e-4)))
    assert not caplog.messages


def test_all_unknown_arguments_of_trl_are_named_at_once(model: Path, tmp_path: Path) -> None:
    extra = json.dumps({"top_kk": 1, "model_name_or_path": "m", "sync_ref_model": True, "weight_decay": 0.1})
    with pytest.raises(ValueError) as raised:
        preflight(RunInputs(config_of(model, tmp_path, seeding__extra=extra)))
    lines = str(raised.value).splitlines()
    assert [line.split()[1] for line in lines] == ["'top_kk'", "'model_name_or_path'", "'sync_ref_model'"]
    assert lines[1].endswith("is set by the run itself. Take it out and use --model.")


def test_a_night_of_0_1_is_resumed_with_its_steps(model: Path, tmp_path: Path) -> None:
    begun = json.loads(config_of(model, tmp_path, seeding__steps=100).model_dump_json())
    del begun["seeding"]["passes"]
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(begun), "utf-8")
    plan = preflight(RunInputs(config_of(model, tmp_path, resume=True, dry_run=True)))
    assert (plan.steps, plan.passes) == (100, None)


def test_a_routed_plan_counts_the_router_and_names_the_folder_of_the_experts(model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path, memory__routing="topk")
    plan, dense = preflight(RunInputs(config), check_rewards), preflight(RunInputs(config_of(model, tmp_path)))
    memory = attach(tiny_model(), MemorySpec(width=8, max_experts=2, routing="topk"))
    memory.activate()
    assert plan.added_parameters == memory.count_parameters()["added"] == dense.added_parameters + 2 * (32 + 1)
    assert (plan.top_k, dense.top_k) == (2, None)
    assert plan.disk_bytes == (2 + 2 * 3) * 4 * plan.added_parameters  # two adapters, two checkpoints with moments
    console = Console(width=400, record=True, file=StringIO())
    console.print(render(plan))
    shown = console.export_text()
    assert "2 chosen by a router, plus the one that learns" in shown
    assert f"load_memory(base, '{config.output_dir}/adapter')" in shown
    assert str(config.output_dir / "model") not in shown
    first = write_finished_run(tmp_path / "night1", max_experts=3, routing="topk")
    options: dict[str, object] = {"memory__width": None, "memory__max_experts": None, "continue_from": first}
    assert preflight(RunInputs(config_of(model, tmp_path, **options))).top_k == 2


def test_weights_stay_sharded_if_engines_have_their_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(**options: object) -> int:
        return make_plan(RunInputs(config_of(model, tmp_path, **options))).peak.held["weights"]

    whole = weights()
    monkeypatch.setattr("sleep_trl.planning.preflight.count_shards", lambda: 2)
    assert weights() == whole  # TRL puts the model together for its rollouts
    assert weights(seeding__extra='{"ds3_gather_for_generation": false}') == whole // 2
    assert weights(rollout__engine="ray") == whole // 2


def test_second_night_takes_size_and_room_from_the_first(model: Path, tmp_path: Path) -> None:
    first = write_finished_run(tmp_path / "night1")
    options: dict[str, object] = {"memory__width": None, "memory__max_experts": None, "continue_from": first}
    plan = preflight(RunInputs(config_of(model, tmp_path, **options)))
    assert (plan.width, plan.experts, plan.max_experts) == (8, 2, 2)
    full = write_finished_run(tmp_path / "night2", experts=2)
    options |= {"continue_from": full, "memory__max_experts": 3}
    plan = preflight(RunInputs(config_of(model, tmp_path, **options)))
    assert (plan.width, plan.experts, plan.max_experts) == (8, 3, 3)


def test_resume_allows_what_changes_nothing(model: Path, tmp_path: Path) -> None:
    begun = config_of(model, tmp_path)
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    path.write_text(begun.model_dump_json(), "utf-8")
    (path.parent / "phases").mkdir()
    now = config_of(model, tmp_path, resume=True, dry_run=True, seeding__logging_steps=1)
    assert changed_options(now, path) == []
    preflight(RunInputs(now))
    other = config_of(model, tmp_path, seeding__alpha=0.5, seeding__extra='{"top_k": 2}')
    assert changed_options(other, path) == []  # nothing has been seeded yet
    fewer = config_of(model, tmp_path, seeding__steps=7)  # but how much is written depends on the steps
    assert changed_options(fewer, path) == ["seeding.steps (then None, now 7)"]
    (path.parent / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    assert changed_options(other, path) == [
        "seeding.alpha (then 0.7, now 0.5)",
        "seeding.extra (then {}, now {'top_k': 2})",
    ]


def test_resume_knows_options_that_are_new(model: Path, tmp_path: Path) -> None:
    begun = json.loads(config_of(model, tmp_path).model_dump_json())
    del begun["dream"]["workers"], begun["memory"]["routing"]
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(begun), "utf-8")
    assert changed_options(config_of(model, tmp_path), path) == []
    now = config_of(model, tmp_path, memory__routing="topk")
    assert "memory.routing (then 'dense', now 'topk')" in changed_options(now, path)


def test_later_processes_leave_the_folder_to_the_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(model, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}", "utf-8")
    monkeypatch.setenv("RANK", "1")
    preflight(RunInputs(config))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="unfinished run"):
        preflight(RunInputs(config))


def test_header_gives_shapes(model: Path) -> None:
    shapes = read_header(model / "model.safetensors")
    expected = {name: tuple(value.shape) for name, value in tiny_model().state_dict().items()}
    assert shapes == expected


def test_extra_may_hold_what_trl_knows(model: Path, tmp_path: Path) -> None:
    preflight(RunInputs(config_of(model, tmp_path, seeding__extra='{"report_to": "none", "top_k": 5}')))


def test_extra_without_effect_is_named(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = '{"eval_strategy": "no", "beta": 0.0, "eval_steps": 5, "vllm_mode": "server", "top_k": 5}'
    preflight(RunInputs(config_of(model, tmp_path, seeding__extra=extra)))
    assert caplog.messages == [
        "seeding.extra: eval_steps has no effect in a night: there is no evaluation during training.",
        "seeding.extra: vllm_mode has no effect in a night: rollout.engine starts vLLM, not TRL.",
    ]


def test_plan_is_shown_in_full(model: Path, tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(preflight(RunInputs(config_of(model, tmp_path)))))
    text = console.export_text()
    for shown in ("LlamaForCausalLM, 2 layers of 32", "21,728 in float32", "1,536, trainable: 6.60%"):
        assert shown in text


def test_dry_run_prints_and_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memories = write_memories(tmp_path / "docs.jsonl")
    run = tmp_path / "run"
    given = arguments(model=model, memories=memories, output_dir=run, dry_run=True)
    assert sleep.main(given) == 0
    assert "The night, as planned" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == [memories]


def test_stopped_run_explains_how_to_resume(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(inputs: RunInputs, *_: object) -> None:
        write_json(inputs.config.output_dir / "config.json", {})
        raise KeyboardInterrupt

    monkeypatch.setattr("sleep_trl.night.run.run_night", stop)
    memories = write_memories(tmp_path / "docs.jsonl")
    assert sleep.main(arguments(model=model, memories=memories, output_dir=tmp_path / "run")) == 130
    assert "--resume" in capsys.readouterr().err


def test_meta_model_takes_no_memory(model: Path) -> None:
    from sleep_trl.models.inspection import build_without_weights, read_config

    built = build_without_weights(str(model), read_config(str(model)))
    assert {parameter.device for parameter in built.parameters()} == {torch.device("meta")}


def test_what_is_not_read_is_in_the_plan_and_in_doctor(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "a.md").write_text("the cat sleeps")
    (folder / "b.md").write_bytes(b"\xff")
    (folder / "c.png").touch()
    config = config_of(model, tmp_path, memories=folder)
    plan = preflight(RunInputs(config))
    assert plan.memories == 1
    screen = StringIO()
    Console(file=screen, width=300, markup=False).print(render(plan))
    finding = check_memories(Case(config))
    assert finding.state == "warning" and finding.found.startswith("1 to learn; 1 files or rows cannot be read: ")
    for shown in (screen.getvalue(), finding.found):
        assert "b.md: not UTF-8 text" in shown and "1 .png" in shown and "node_modules" in shown
    with pytest.raises(ValueError, match=r"b\.md: not UTF-8 text"):
        preflight(RunInputs(config.model_copy(update={"strict": True})))
    (folder / "b.md").unlink()
    assert check_memories(Case(config)).state == "ok"
    assert preflight(RunInputs(config.model_copy(update={"strict": True}))).memories == 1
