"""DreamingTrainer on its own: the quickstart's model dreams about two sentences and learns to write useful dreams.

python examples/dreaming/alone.py
"""

from pathlib import Path

from datasets import Dataset

from sleep_trl import DreamingConfig, DreamingTrainer

MODEL = str(Path(__file__).parents[1] / "quickstart" / "model")
TASKS = {"Robbin runs the inn Zora.": ("Which inn does Robbin run?", "Zora"),
         "Jokin sweeps the bridge Bora.": ("Who sweeps the bridge Bora?", "Jokin")}  # fmt: skip

rows = [{"prompt": text, "task_id": text, "context": text, "questions": [{"question": question, "answers": [answer]}]}
        for text, (question, answer) in TASKS.items()]  # fmt: skip

config = DreamingConfig(
    "runs/dreams",
    rounds=3,
    em_epochs=2,
    num_generations=16,
    per_device_train_batch_size=32,
    max_completion_length=24,
    learning_rate=1e-4,
    selection="all",
    # Each dream is learned in 10 steps by a LoRA; the task's question is asked before and after.
    lora_learning_rate=5e-3,
    metric="exact",
    max_answer_length=8,
    test="sign",
    report_to="none",
    use_cpu=True,  # leave this and the next one out on a GPU
    bf16=False,
)
trainer = DreamingTrainer(MODEL, args=config, train_dataset=Dataset.from_list(rows))
trainer.train()
for record in trainer.trials:
    if record["rewarded"]:
        print(f"after {record['step']} steps, gain {record['trial_gain']:+.2f}: {record['dream']}")
