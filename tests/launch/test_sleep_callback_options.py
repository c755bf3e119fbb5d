"""Options of nights in the midst of ordinary runs, and runs, models and options that are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from sleep_trl import SleepCallback, attach
from sleep_trl.config import RunConfig
from sleep_trl.memory import MemorySpec
from tests.launch.ordinary_runs import NIGHT, ROWS, callback, run
from tests.tiny import tiny_model


def trainer_arguments(**changed):
    usual = {"world_size": 1, "n_gpu": 1, "deepspeed": None, "fsdp": "", "torch_compile": False, "output_dir": "run"}
    return SimpleNamespace(**usual | {"push_to_hub": False} | changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"world_size": 2}, "several processes"),
        ({"n_gpu": 2}, "DataParallel"),
        ({"deepspeed": "zero3.json"}, "DeepSpeed"),
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"torch_compile": True}, "compiled"),
        ({"use_vllm": True}, "vLLM"),
    ],
)
def test_runs_in_which_no_night_can_take_place_are_refused(memories, changed, reason):
    with pytest.raises(ValueError, match=reason):
        callback(memories).on_init_end(trainer_arguments(**changed), None, None, tiny_model())


def test_models_that_no_night_can_grow_are_refused(memories, tmp_path, model, tokenizer):
    half, quantized, routed = (tiny_model() for _ in range(3))
    quantized.is_quantized = True
    attach(routed, MemorySpec(width=8, routing="topk"))
    for refused, reason in ((half.half(), "float16"), (quantized, "quantized"), (routed, "routing topk")):
        with pytest.raises(ValueError, match=reason):
            callback(memories).on_init_end(trainer_arguments(), None, None, refused)
    with pytest.raises(ValueError, match="adapters of PEFT"):
        SFTTrainer(
            str(model),
            args=SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=LoraConfig(),
            callbacks=[callback(memories)],
        )


def test_nights_are_not_uploaded(memories):
    inside = callback(memories, output_dir="run/nights")
    with pytest.raises(ValueError, match="push_to_hub uploads"):
        inside.on_init_end(trainer_arguments(push_to_hub=True), None, None, tiny_model())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"continue_from": "runs/one"}, "continue_from is not for SleepCallback"),
        ({"nights": ["a.jsonl", "b.jsonl"], "memories": "a.jsonl"}, "nights is not for SleepCallback"),
        ({"memories": "forget:entry-001"}, "memories is not for SleepCallback"),
        ({"dream": {"rounds": 1}}, "dream.rounds is not for SleepCallback"),
        ({"levels": {"when_full": "merge"}}, "levels is not for SleepCallback"),
        ({"memory": {"routing": "topk"}}, "memory.routing is not for SleepCallback"),
        ({"rollout": {"engine": "ray"}}, "rollout.engine is not for SleepCallback"),
        ({"seeding": {"extra": {"report_to": "wandb"}}}, "report_to would end"),
        ({"seeding": {"stepz": 1}}, "seeding.stepz is not an option"),
    ],
)
def test_options_that_nights_of_a_run_cannot_have_are_refused(options, reason):
    given: dict[str, Any] = {"memories": "notes"}
    with pytest.raises(ValueError, match=reason):
        SleepCallback(every=2, config=given | options)
    with pytest.raises(ValueError, match="at least 1 step"):
        SleepCallback(every=0, config=given)


def test_the_options_may_be_a_file_beside_its_memories(tmp_path, memories):
    (tmp_path / "night.yaml").write_text("memories: notes\nseeding: {steps: 3}\n", "utf-8")
    assert SleepCallback(2, tmp_path / "night.yaml").config.memories == str(memories)
    given = RunConfig(model="other", memories="notes")
    assert SleepCallback(2, given).config is given


def test_a_mistake_in_the_options_is_found_when_training_begins(tmp_path, memories, model, tokenizer):
    wide = callback(memories, night=NIGHT | {"seeding": NIGHT["seeding"] | {"lr_scheduler_type": "cosin"}})
    with pytest.raises(ValueError, match="cosin"):
        run(tmp_path / "run", str(model), wide, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="dtype: bfloat16 was given"):
        run(tmp_path / "run", str(model), callback(memories, dtype="bfloat16"), tokenizer=tokenizer)
