"""From the trainer's arguments to what tries out its dreams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sleep_trl.batched_lora import LoraSpec, LoraTraining, Workers
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams.evaluator import DreamEvaluator, SignificanceTest
from sleep_trl.dreams.measure import Custom, HeldoutLoss, Measure, Questions
from sleep_trl.rewards import make_judge
from sleep_trl.rewards.registry import import_function
from sleep_trl.rollout import TransformersEngine

from .config import DreamingConfig


@dataclass(frozen=True)
class NamedMeasure:
    """A user's measure by its name. A worker imports it for itself, since it cannot be sent a function of a file.

    Args:
        name (`str`):
            `package.module:function`, or the absolute path of a file and a function in it.
    """

    name: str

    @classmethod
    def of(cls, name: str) -> NamedMeasure:
        """Return the measure of a name whose path may be relative."""
        place, _, function = name.rpartition(":")
        return cls(f"{Path(place).expanduser().resolve()}:{function}" if place.endswith(".py") else name)

    def __call__(self, task: Any, ask: Callable[[list[str]], list[str]]) -> list[float]:
        """Return the scores of a task."""
        scores: list[float] = _imported(self.name)(task, ask)
        return scores


_imported = cache(import_function)


def make_evaluator(args: DreamingConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> DreamEvaluator:
    """Make the evaluator that a trainer's arguments describe.

    Args:
        args (`DreamingConfig`):
            The arguments.
        model (`PreTrainedModel`):
            The dreamer, which answers the questions.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.

    Raises:
        `ValueError`: if an argument is out of range, or there are `workers` but no `chunk`.
    """
    prompter, workers, address = Prompter(tokenizer, args.chat_template_kwargs), None, args.ray_address
    measure: Measure
    if args.measure == "questions":
        judge = None if args.judge is None else make_judge(args.judge)
        measure = Questions(prompter, args.metric, args.max_answer_length, judge)
    elif args.measure == "heldout_loss":
        measure = HeldoutLoss(prompter)
    else:
        measure = Custom(NamedMeasure.of(args.measure), prompter, args.max_answer_length)
    if args.workers:
        workers = Workers(address, count=args.workers if address is None else None, gpus=args.gpus_per_worker)
    return DreamEvaluator(
        TransformersEngine(model, tokenizer, args.trial_batch_size),
        measure,
        LoraSpec(args.lora_rank, args.lora_alpha),
        LoraTraining(args.lora_steps, args.lora_learning_rate, seed=args.seed),
        SignificanceTest(args.test, args.confidence, args.repeats),  # type: ignore[arg-type]
        args.chunk,
        workers,
    )
