"""A YAML file with a `GRPOConfig` of TRL in `seeding.extra`."""

from dataclasses import fields
from pathlib import Path

import pytest

from sleep_trl.config.command_line import explain, parse
from sleep_trl.config.grpo_file import SCRIPT

STOCK = """
output_dir: out
learning_rate: 1e-5
lr_scheduler_type: linear
max_steps: 30
num_train_epochs: 1
per_device_train_batch_size: 16
gradient_accumulation_steps: 8
num_generations: 8
max_completion_length: 128
chat_template_kwargs: null
bf16: true
use_vllm: true
vllm_mode: colocate
report_to: tensorboard
push_to_hub: true
hub_token: secret
"""
NEEDED = ["--model=m", "--memories=d"]


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("trl [1]") / "grpo.yaml"
    path.parent.mkdir()
    path.write_text(STOCK)
    return path


def test_arguments_become_the_options_of_a_run(stock: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = parse([*NEEDED, "--seeding.extra", str(stock)])
    seeding = config.seeding
    assert (config.output_dir, config.rollout.engine, config.dtype) == (Path("out"), "vllm", "auto")
    assert (seeding.learning_rate, seeding.lr_scheduler_type, seeding.steps, seeding.passes) == (1e-5, "linear", 30, 4)
    assert (seeding.per_device_batch_size, seeding.num_generations, seeding.max_completion_length) == (16, 8, 128)
    assert seeding.extra == {"vllm_mode": "colocate", "report_to": "tensorboard"}
    assert config.chat_template_kwargs == {"enable_thinking": False}
    assert caplog.messages == [
        f"{stock}: a night pushes nothing to the Hub; `sleep-trl export --push_to_hub` does.",
        f"{stock}: gradient_accumulation_steps, bf16 have no effect in a night; "
        "seeding.prompts_per_step, dtype decide.",
    ]


def test_options_that_are_given_come_first(stock: Path) -> None:
    night = stock.with_name("night.yaml")
    night.write_text("seeding: {extra: grpo.yaml, learning_rate: 0.5, num_generations: 4}\n")
    seeding = parse([*NEEDED, f"--config={night}", "--seeding.num-generations=2"]).seeding
    assert (seeding.learning_rate, seeding.num_generations, seeding.steps) == (0.5, 2, 30)
    night.write_text("seeding: {learning_rate: 0.5, extra: {weight_decay: 0.1}}\n")
    seeding = parse([*NEEDED, f"--config={night}", f"--seeding.extra={stock}"]).seeding
    assert seeding.learning_rate == 0.5 and seeding.extra["weight_decay"] == 0.1 and seeding.steps == 30


def test_epochs_are_passes_where_no_number_of_steps_is_given(stock: Path) -> None:
    stock.write_text("max_steps: -1\nnum_train_epochs: 2\n")
    seeding = parse([*NEEDED, f"--seeding.extra={stock}"]).seeding
    assert (seeding.steps, seeding.passes) == (None, 2)


def test_a_file_that_cannot_be_read_is_named(stock: Path) -> None:
    with pytest.raises(ValueError, match=r"--seeding.extra: absent.yaml does not exist"):
        parse([*NEEDED, "--seeding.extra=absent.yaml"])


SCRIPT_FILE = (
    STOCK
    + """
model_name_or_path: org/base
dataset_name: org/prompts
max_prompt_length: 512
use_peft: false
"""
)


def test_arguments_of_a_script_are_named_with_the_options_in_their_place(
    stock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock.write_text(SCRIPT_FILE)
    config = parse([*NEEDED, f"--seeding.extra={stock}"])
    assert (config.model, config.memories, config.seeding.steps) == ("m", "d", 30)
    assert config.seeding.extra == {"vllm_mode": "colocate", "report_to": "tensorboard"}
    *_, message = caplog.messages
    assert "model_name_or_path, dataset_name, max_prompt_length have no effect" in message and "use_peft" not in message
    assert message.endswith("model, memories, max_context decide.")


def test_a_file_of_trl_as_configuration_is_recognized(stock: Path) -> None:
    for content, model in ((SCRIPT_FILE, "org/base"), (STOCK, "MODEL"), ("dataset_name: d\n", "MODEL")):
        stock.write_text(content)
        with pytest.raises(ValueError, match="holds arguments of TRL") as raised:
            parse([f"--config={stock}"])
        expected = f"--seeding.extra {stock} --model {model} --memories MEMORIES."
        assert str(raised.value).endswith(expected) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "suggested"),
    [
        ("model: m\nmodel_name_or_path: n\n", "model_name_or_path is not an option. Did you mean model?"),
        ("memories: d\ngradient_accumulation_steps: 2\n", "Did you mean seeding.prompts_per_step?"),
    ],
)
def test_single_arguments_of_trl_get_their_option_as_suggestion(stock: Path, content: str, suggested: str) -> None:
    stock.write_text(content)
    with pytest.raises(ValueError) as raised:
        parse([*NEEDED, f"--config={stock}"])
    assert suggested in explain(raised.value)


def test_the_arguments_of_trls_scripts_are_known() -> None:
    from trl import ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    names = {field.name for kind in (ModelConfig, GRPOScriptArguments) for field in fields(kind)}
    assert names - SCRIPT.keys() == {"ignore_bias_buffers"}
