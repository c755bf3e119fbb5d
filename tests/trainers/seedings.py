"""A small KnowledgeSeedingTrainer: rows, a student, the trainer, and its logs."""

from datasets import Dataset

from sleep_trl.memory import MemorySpec, attach
from sleep_trl.trainers import KnowledgeSeedingConfig, KnowledgeSeedingTrainer
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = "the cat of Mira is called Tolu and it eats hats while the boat of Ben sleeps".split()


def rows(n: int = 16) -> Dataset:
    prompts = [" ".join(WORDS[i % 9 : i % 9 + 3]) for i in range(n)]
    return Dataset.from_list(
        [
            {
                "prompt": prompt,
                "teacher_prompt": " ".join(WORDS) + " " + prompt,
                "reference": " ".join(WORDS[i % 5 : i % 5 + 4]),
                "part": ("memory", "general")[i % 2],
            }
            for i, prompt in enumerate(prompts)
        ]
    )


def of_memories(data: Dataset) -> Dataset:
    return data.map(lambda row: {"part": "memory"})


def length_reward(completion_ids, **kwargs):
    return [float(len(set(ids))) for ids in completion_ids]


OPTIONS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 5,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
}


DIVERGENCE = {"rollout_start": 0.0, "sft_weight": 0.0}  # what the formulas of the method hold for


def student(form: str = "llama"):
    model = tiny_model(form)
    attach(model, MemorySpec(width=8, max_experts=2)).activate()
    return model


def trainer(tmp_path, cls=KnowledgeSeedingTrainer, config=KnowledgeSeedingConfig, model=None, data=None, **options):
    processing_class = options.pop("processing_class", None)
    if config is KnowledgeSeedingConfig:
        options = DIVERGENCE | options
    return cls(
        model or student(),
        options.pop("reward_funcs", length_reward),
        eval_dataset=options.pop("eval_dataset", None),
        args=config(str(tmp_path), **{**OPTIONS, **options}),
        train_dataset=data or rows(),
        processing_class=processing_class or tiny_tokenizer(),
    )


def logged(finished, key):
    return [entry[key] for entry in finished.state.log_history if key in entry]


def first_batch(t):
    """Make the trainer's first batch, as its training loop would."""
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    return t._prepare_inputs(next(iter(t.get_train_dataloader())))
