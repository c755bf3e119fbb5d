"""TRL's SFTTrainer with a night every N steps: the model learns the memories into experts while it is fine-tuned.

    python examples/sleep_callback.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/Capybara \
        --nights nights.yaml --every 200 --output_dir runs/sft

`nights.yaml` holds the options of the nights, such as `memories: notes/`; `python launch/sleep.py --help` lists them.
What is saved in `runs/sft` is an ordinary checkpoint; the nights themselves are in `runs/sft-nights`.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

from sleep_trl import SleepCallback


@dataclass
class NightArguments:
    nights: str = field(metadata={"help": "YAML file with the options of the nights."})
    every: int = field(default=200, metadata={"help": "Optimizer steps between two nights."})


def main(script_args, training_args, model_args, night_args):
    trainer = SFTTrainer(
        model_args.model_name_or_path,
        args=training_args,
        train_dataset=load_dataset(script_args.dataset_name, split=script_args.dataset_train_split),
        callbacks=[SleepCallback(every=night_args.every, config=night_args.nights)],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    return trainer


def make_parser():
    return TrlParser((ScriptArguments, SFTConfig, ModelConfig, NightArguments))


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
