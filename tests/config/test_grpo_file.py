"""A YAML file with a `GRPOConfig` of TRL in `seeding.extra`."""

from pathlib import Path

import pytest

from sleep_trl.config.command_line import parse

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
        f"{stock}: gradient_accumulation_steps, bf16 has no effect in a night; seeding.prompts_per_step, dtype decides."
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
