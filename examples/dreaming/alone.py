"""DreamingTrainer alone: the quickstart's model dreams about two sentences and learns to write what helps it.

python examples/dreaming/alone.py
"""

from pathlib import Path

from datasets import Dataset

from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams import DreamEvaluator, InnerLoop, LoraSpec, Questions, SignificanceTest
from sleep_trl.rollout import TransformersEngine
from sleep_trl.trainers import DreamingConfig, DreamingTrainer

MODEL = str(Path(__file__).parents[1] / "quickstart" / "model")
TASKS = {"Robbin runs the inn Zora.": ("Which inn does Robbin run?", "Zora"),
         "Jokin sweeps the bridge Bora.": ("Who sweeps the bridge Bora?", "Jokin")}  # fmt: skip

rows = [{"prompt": text, "task_id": text, "context": text, "questions": [{"question": question, "answers": [answer]}]}
        for text, (question, answer) in TASKS.items()]  # fmt: skip


def evaluate_dreams(trainer: DreamingTrainer) -> DreamEvaluator:
    """Learn a dream in 10 steps, and ask the task's question before and after."""
    engine = TransformersEngine(trainer.model, trainer.processing_class, batch_size=64)
    measure = Questions(Prompter(trainer.processing_class), "exact", max_new_tokens=8)
    return DreamEvaluator(
        engine, measure, LoraSpec(rank=8), InnerLoop(steps=10, learning_rate=5e-3), SignificanceTest("sign")
    )


options = {"num_generations": 16, "per_device_train_batch_size": 32, "max_completion_length": 24, "selection": "all"}
options |= {"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 1e-4}  # the first two: without a GPU
config = DreamingConfig("runs/dreams", rounds=3, em_epochs=2, **options)
trainer = DreamingTrainer(MODEL, evaluate_dreams, args=config, train_dataset=Dataset.from_list(rows))
trainer.train()
for record in trainer.trials:
    if record["rewarded"]:
        print(f"after {record['step']} steps, gain {record['trial_gain']:+.2f}: {record['dream']}")
