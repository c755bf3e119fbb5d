"""Ordinary runs of a few steps with nights in their midst, and what tests compare of them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from sleep_trl import SleepCallback

TEXT = "the cat of Mira is called Tolu and it eats hats. the boat of Ben sleeps."
PROSE = "w30 w31 w32 w33 w34 w35"  # words of which neither the run nor a night sees one
ROWS = [{"text": text} for text in ("the cat eats hats.", "Ben sleeps.", "the boat of Mira is called Tolu.") * 4]
NIGHT: dict[str, Any] = {
    "memory": {"width": 8, "max_experts": 4},
    "dataset": {
        "templates": ["statement"],
        "general_samples": 8,
        "general_max_new_tokens": 8,
        "max_new_tokens": 8,
        "keep_truncated": True,
    },
    "seeding": {"steps": 2, "prompts_per_step": 4, "num_generations": 2, "max_completion_length": 8, "save_steps": 1},
    "evaluation": {"max_new_tokens": 4, "max_questions": 2},
    "report": False,
}
ROLLED_BACK: dict[str, Any] = NIGHT | {
    "dataset": NIGHT["dataset"] | {"general_share": 0.0},  # nothing protects the base skill
    "seeding": NIGHT["seeding"] | {"learning_rate": 2.0, "warmup_steps": 0},
    "retention": {"max_skill_loss": 0.0},
}


def length(completions, **columns):
    return [float(len(completion)) for completion in completions]


def run(folder, model, callback=None, resume=None, trainer=SFTTrainer, tokenizer=None, rows=ROWS, **options):
    """Train for six steps, with a checkpoint every other step."""
    config = {SFTTrainer: SFTConfig, DPOTrainer: DPOConfig, GRPOTrainer: GRPOConfig}[trainer]
    given = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    done = trainer(
        model,
        args=config(str(folder), **given | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback] if callback else [],
        **({"reward_funcs": length} if config is GRPOConfig else {}),
    )
    done.train(resume_from_checkpoint=str(resume) if resume else None)
    return done


def callback(memories, every=3, night=NIGHT, **options):
    around = Path(memories).parent
    probes = {"skill": str(around / "skill.jsonl"), "perplexity": str(around / "prose.txt")}
    evaluation = night["evaluation"] | probes
    return SleepCallback(every, night | {"memories": str(memories), "evaluation": evaluation} | options)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if ".memory." not in name}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
