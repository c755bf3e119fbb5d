"""Dreaming: the model writes its own training data, tries it out, and learns to write data that helps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sleep_trl.batched_lora import LoraJob
from sleep_trl.dreams.answerers import Answerers
from sleep_trl.dreams.evaluator import DreamEvaluator, Trial
from sleep_trl.dreams.gradients import Text
from sleep_trl.dreams.measure import Task
from sleep_trl.dreams.select import Selected, Selection, select
from sleep_trl.evaluation.recall import QAItem
from sleep_trl.memory import Memory
from sleep_trl.rewards import GuardedReward, resolve
from sleep_trl.rewards.guard import unwrap

from ..expert_checkpoints import ExpertCheckpoints
from ..log_filter import without_row_dump
from ..trl_private import get_config_model_id
from .config import DreamingConfig
from .evaluator import make_evaluator

TRIAL = {"trial_reward", "trial_gain", "trial_low", "trial_high"}  # columns
TEACHER = "teacher_probability"  # column
Rows = list[dict[str, Any]]
Tensors = dict[str, torch.Tensor]


class DreamingTrainer(ExpertCheckpoints):
    """
    Trainer for dreaming (arXiv 2606.03979, section 3.4). For each task it samples `num_generations` dreams with the
    task's context in the prompt, selects some of them by their gradient, trains a separate LoRA on each, measures what
    that does for the task, and makes the dreams that helped more likely.

    Rows of the dataset are tasks: `prompt` (asks for a dream and contains the context), `task_id`, `context`, and what
    `args.measure` needs: `questions` (a list of `{"question": ..., "answers": [...]}`) or `heldout` (text).

    Reward functions receive these columns and, for dreams that were tried out, `trial_reward` (1, 0, or None if the
    sign is uncertain), `trial_gain`, `trial_low` and `trial_high` (None for the others). If one of the functions has a
    parameter `teacher_probability`, they also receive that column: the probability of a dream's tokens behind its
    prompt (geometric mean) under the model without its learning expert. Dreams that were not selected get no reward and
    do not enter the loss.

    Changes with respect to [`~trl.GRPOTrainer`]: `_calculate_rewards` (selects dreams and tries them out before they
    are rewarded), `_generate_single_turn` (a random further expert while sampling), `_compute_loss` (ReST-EM; with
    `improvement="grpo"` it is GRPO's). Generation, advantages, logging, callbacks, `peft_config` and `rollout_func` are
    inherited.

    Args:
        model (`str` or `PreTrainedModel`):
            The dreamer. Whatever requires gradients is trained: a memory's learning expert, the adapter of a
            `peft_config`, or all weights.
        reward_funcs (`RewardFunc` or list of them, *optional*):
            TRL reward functions. Default: `improvement` (Eq. 5).
        args (`DreamingConfig`, *optional*):
            Configuration.
        train_dataset (`Dataset`):
            The tasks.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            Tasks to dream about in `evaluate()`.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. Default: the model's.
        evaluator (`DreamEvaluator`, *optional*):
            Tries dreams out. Default: made from `args`, see [`DreamingConfig`].
        learn (`Callable[[list[int]], tuple[tuple[int, ...], ...]]`, *optional*):
            Turns a dream's token ids into the sequences that its LoRA learns. Default: the dream as one sequence,
            behind the row's `learn_prompt_ids` if it has them.
        reference (`Callable[[], dict[str, torch.Tensor]]`, *optional*):
            Returns the gradient of the memories for `selection="gradient_alignment"`; called once a round.
        **kwargs:
            Everything else that [`~trl.GRPOTrainer`] takes.

    Raises:
        `ValueError`: if a row lacks a column, the tasks do not fill whole batches, or `random_expert` is set without a
            routed memory.
    """

    _tag_names = ["trl", "sleep-trl", "dreaming"]
    _name = "Dreaming"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: DreamingConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        evaluator: DreamEvaluator | None = None,
        learn: Callable[[list[int]], tuple[tuple[int, ...], ...]] | None = None,
        reference: Callable[[], dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = DreamingConfig(f"{name.split('/')[-1]}-Dreaming")
        if train_dataset is None:
            raise ValueError("Dreaming needs tasks. Give train_dataset, with the columns prompt, task_id and context.")
        if missing := [c for c in ("prompt", "task_id", "context") if c not in train_dataset.column_names]:
            raise ValueError(f"The tasks lack the columns {missing}; they have {sorted(train_dataset.column_names)}.")
        self.selection = Selection(args.selection, args.select_top_k, args.select_random_k)  # type: ignore[arg-type]
        if args.improvement == "rest_em":
            _dream_of_all_tasks_at_once(args, len(train_dataset))
        super().__init__(
            model,
            resolve("improvement") if reward_funcs is None else reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.learn = learn
        self.reference = reference
        self.evaluator = evaluator or make_evaluator(args, self.model, self._tokenizer)
        self.trials: list[dict[str, Any]] = []
        self._rewarded = torch.empty(0)

    # -- the E-step ------------------------------------------------------------------------------------------------

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._random_expert():
            return super()._generate_single_turn(*args, **kwargs)

    @contextmanager
    def _random_expert(self) -> Iterator[None]:
        if not self.args.random_expert:
            yield
            return
        memory = Memory.of(self.accelerator.unwrap_model(self.model))
        if memory is None:
            raise ValueError(
                "random_expert=True needs a memory with routing='topk', and this model has no memory. Attach one, or "
                "leave random_expert out."
            )
        seed = self.args.seed + 1000 * self.state.global_step + self.accelerator.process_index
        with memory.random_extra_expert(seed):
            yield

    def _calculate_rewards(
        self, inputs: Rows, prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        prompt_ids = self._tokenize_prompts([row["prompt"] for row in inputs])[0]
        texts = [Text.behind(ids, dream) for ids, dream in zip(prompt_ids, completion_ids_list, strict=True)]
        selected, trials = self._try_out(inputs, texts, completion_ids_list)
        rows = [{**row, **_columns(trial)} for row, trial in zip(inputs, trials, strict=True)]
        if any(reads(func, {TEACHER}) for func in self.reward_funcs):
            likely = self._teacher_probabilities(texts)
            rows = [{**row, TEACHER: probability} for row, probability in zip(rows, likely, strict=True)]
        rewards: torch.Tensor = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        kept = torch.tensor(selected.is_kept, device=rewards.device)
        rewards[~self.accelerator.gather(kept)] = torch.nan
        start = self.accelerator.process_index * len(inputs)
        mine = rewards[start : start + len(inputs)] * self.reward_weights.to(rewards.device)
        has_improved = [trial is not None and trial.reward == 1 for trial in trials]
        deciding = [
            reads(func, TRIAL) and bool(w) for func, w in zip(self.reward_funcs, self.reward_weights, strict=True)
        ]
        self._rewarded = worth_learning(mine, has_improved, deciding, self.args.smallest_reward)
        self._keep_record(rows, completions, completion_ids_list, selected, trials)
        return rewards

    def _teacher_probabilities(self, texts: list[Text]) -> list[float]:
        memory = Memory.of(self.accelerator.unwrap_model(self.model))
        with memory.as_teacher() if memory else nullcontext():
            losses = Answerers(self.evaluator.engine, [None]).token_losses(texts, [0] * len(texts))
        return [math.exp(-sum(row) / len(row)) for row in losses]

    def _try_out(self, rows: Rows, texts: list[Text], dreams: list[list[int]]) -> tuple[Selected, list[Trial | None]]:
        model = self.accelerator.unwrap_model(self.model)
        tasks = [str(row["task_id"]) for row in rows]
        reference = self.reference() if self.reference and self.selection.rule == "gradient_alignment" else None
        seed = self.args.seed + self.state.global_step
        selected = select(texts, tasks, self.selection, model, reference, seed)
        chosen = [i for i, is_kept in enumerate(selected.is_kept) if is_kept]
        number = f"{self.state.global_step} {self.accelerator.process_index}"
        named = [LoraJob(f"{tasks[i]} {number} {i}", self._sequences(rows[i], dreams[i])) for i in chosen]
        done = dict(zip(chosen, self.evaluator.try_out(named, [_task(rows[i]) for i in chosen]), strict=True))
        return selected, [done.get(i) for i in range(len(rows))]

    def _sequences(self, row: dict[str, Any], dream: list[int]) -> tuple[tuple[int, ...], ...]:
        return self.learn(dream) if self.learn else ((*row.get("learn_prompt_ids", ()), *dream),)

    def _keep_record(
        self,
        rows: Rows,
        completions: list[Any],
        dreams: list[list[int]],
        selected: Selected,
        trials: list[Trial | None],
    ) -> None:
        """Record the outcome of each dream, and log the shares of those that were tried out."""
        for i, (row, trial) in enumerate(zip(rows, trials, strict=True)):
            self.trials.append(
                {
                    "step": self.state.global_step,
                    "task_id": row["task_id"],
                    "dream": completions[i] if isinstance(completions[i], str) else completions[i][-1]["content"],
                    "ids": list(dreams[i]),
                    "selected": selected.reasons[i],
                    "score": selected.scores[i],
                    "rewarded": bool(self._rewarded[i]),
                    "error": trial.error if trial else None,
                    **_columns(trial),
                }
            )
        tried = [trial for trial in trials if trial is not None]
        verdicts = [trial.gain.verdict for trial in tried if trial.gain is not None]
        counts = [len(tried), len(verdicts), *(verdicts.count(v) for v in ("better", "worse", "uncertain"))]
        sums = self.accelerator.reduce(torch.tensor(counts, dtype=torch.float32, device=self.accelerator.device))
        total, measured, better, worse, uncertain = sums.tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["dreams/tried"].append(total)
        metrics["dreams/failed"].append(total - measured)
        for name, count in (("better", better), ("worse", worse), ("uncertain", uncertain)):
            metrics[f"dreams/{name}"].append(count / measured if measured else 0.0)

    # -- the M-step ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Rows) -> Tensors:
        with without_row_dump():
            output: Tensors = super()._generate_and_score_completions(inputs)
        output["rewarded"] = self._rewarded.float()
        tokens = (output["completion_mask"].sum(1) * self._rewarded).sum()
        output["rewarded_tokens"] = self.accelerator.reduce(tokens)
        return output

    def _compute_loss(self, model: nn.Module, inputs: Tensors) -> torch.Tensor:
        if self.args.improvement == "grpo":
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            return loss
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        width = inputs["completion_ids"].size(1)
        log_probs = self._get_per_token_logps_and_entropies(model, ids, mask, width)[0]  # (batch, width)
        weights = inputs["completion_mask"] * inputs["rewarded"].unsqueeze(1)
        return -(log_probs * weights).sum() / inputs["rewarded_tokens"].clamp(min=1) * self._loss_scale()


def reads(func: Any, columns: Collection[str]) -> bool:
    """Whether a reward function names one of the columns as a parameter."""
    func = unwrap(func.func if isinstance(func, GuardedReward) else func)
    try:
        return not inspect.signature(func).parameters.keys().isdisjoint(columns)
    except (TypeError, ValueError):
        return False


def worth_learning(
    rewards: torch.Tensor, has_improved: Sequence[bool], deciding: Sequence[bool], smallest: float
) -> torch.Tensor:
    """Return which dreams ReST-EM learns: those that improved their task (Eq. 5) and whose rewards add up to more than
    `smallest`. What other rewards say cannot make up for a task that did not improve.

    Args:
        rewards (`torch.Tensor` of shape `(dreams, functions)`):
            Weighted rewards; NaN where a function gave none.
        has_improved (`Sequence[bool]`):
            Whether the trial improved each dream's task. It decides if no reward does.
        deciding (`Sequence[bool]`):
            Which functions decide whether the task improved: their reward has to be above 0.
        smallest (`float`):
            What the sum of the rewards has to exceed.

    Returns:
        `torch.Tensor` of bools and shape `(dreams,)`.
    """
    if any(deciding):
        improved = rewards[:, torch.tensor(deciding, device=rewards.device)].gt(0).all(1)  # NaN is not above 0
    else:
        improved = torch.tensor(has_improved, device=rewards.device)
    return improved & rewards.nansum(1).gt(smallest) & ~rewards.isnan().all(1)


def _dream_of_all_tasks_at_once(args: DreamingConfig, tasks: int) -> None:
    """Make one generation batch of all dreams of all tasks: an E-step."""
    dreams, share = tasks * args.num_generations, args.per_device_train_batch_size * args.world_size
    if dreams % share:
        raise ValueError(
            f"{tasks} tasks of {args.num_generations} dreams do not fill batches of {share}. Change the number of tasks"
            f", num_generations, or per_device_train_batch_size x processes."
        )
    args.generation_batch_size, args.steps_per_generation = dreams, dreams // share


def _task(row: dict[str, Any]) -> Task:
    questions = tuple(QAItem(q["question"], tuple(q["answers"])) for q in row.get("questions") or ())
    return Task(str(row["task_id"]), row["context"], questions, row.get("heldout"))


def _columns(trial: Trial | None) -> dict[str, float | None]:
    gain = trial.gain if trial is not None else None
    return {
        "trial_reward": trial.reward if trial is not None else None,
        "trial_gain": gain.mean if gain else None,
        "trial_low": gain.low if gain else None,
        "trial_high": gain.high if gain else None,
    }
