"""From the trainer's arguments to what tries out its dreams."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sleep_trl.batched_lora import LoraSpec, LoraTraining, Workers
from sleep_trl.data.prompts import Prompter
from sleep_trl.dreams.evaluator import DreamEvaluator, SignificanceTest
from sleep_trl.dreams.measure import HeldoutLoss, Measure, Questions
from sleep_trl.rollout import TransformersEngine

from .config import DreamingConfig


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
    measure: Measure = HeldoutLoss(prompter)
    if args.measure == "questions":
        measure = Questions(prompter, args.metric, args.max_answer_length)
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
