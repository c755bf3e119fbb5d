"""Knowledge Seeding: the model with the memory in its context teaches the larger model without it in context."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sleep_trl.config import first_rollout_step
from sleep_trl.data.parts import PARTS
from sleep_trl.memory import Memory
from sleep_trl.models.head import Head
from sleep_trl.rewards import resolve
from sleep_trl.rollout.in_trl import share_clipped

from ..log_filter import without_row_dump
from ..trl_private import get_config_model_id, pad
from .config import KnowledgeSeedingConfig
from .learning_expert import check_that_experts_support, ensure_learning_expert
from .loss import log_probs_per_token
from .parts import Tensors, count_copies, is_replay, spread_references, weigh_rows, written_mask
from .privileged_context import with_teacher_prompt
from .rollouts import Rollouts
from .rows import Rows, check_arguments, check_data, normalize, require, text_of_reference
from .taught import Taught, Text
from .teachers import Teacher, TeacherOutput, prepare_teachers


class KnowledgeSeedingTrainer(Taught, Rollouts):
    """
    Trainer for Knowledge Seeding (arXiv 2606.03979, section 3.3): upward distillation on the student's own rollouts,
    and GRPO on a reward for imitating the teacher. It minimizes

        (1 - alpha) * policy loss + alpha * (lmbda * D(rollout) + (1 - lmbda) * D(reference))

    where D is a token-level divergence between teacher and student. The teacher is the same set of weights: it reads
    the privileged context and lacks the expert that is learning. Only that expert is trained. With `sft_weight` w, the
    references of memories and dreams have `(1 - w) * D + w * cross-entropy`.

    Rows of the dataset have `prompt` (what the student sees), `teacher_prompt` (the same with the privileged context)
    and `reference` (what the teacher wrote there). Each may be text or messages, or come as token ids in `prompt_ids`,
    `teacher_prompt_ids`, `reference_ids`, which are used as they are. Instead of `teacher_prompt` a row may have
    `privileged_context`, as in TRL's self-distillation trainers; see `teacher_prompt_template`. Optional columns are
    `part`, what a row is for (`"memory"`, `"dream"`, `"general"` or `"earlier"`), `stop`, strings before which a
    rollout of the row ends, and `max_completion_length`, its most tokens if fewer than the argument allows. The
    divergence is logged for each part; the last two parts are weighted by `replay_weight`, and if the memory has other
    experts, `"general"` is taught by the pretrained model without any of them. `"general"` rows are not rolled out:
    their divergence is that on the reference, with weight 1.

    Changes with respect to [`~trl.GRPOTrainer`]: `_compute_loss` (adds the divergence),
    `_generate_and_score_completions` (adds teacher prompts and references to the batch), `_tokenize_prompts` (uses
    given token ids), `_generate_single_turn` (ends rollouts at the row's stop strings), `training_step` (drops out
    earlier experts), `_get_per_token_logps_and_entropies` (with `alpha > 0`, keeps the hidden states that the
    divergence needs and scores only completions). Checkpoints hold only the experts if nothing else is trained.
    Generation, rewards, advantages, logging and callbacks are inherited. With `alpha=0` it is GRPO on the new expert,
    to the last bit.

    Args:
        model (`str` or `PreTrainedModel`):
            The student. A model with an attached memory trains the expert that is learning; to any other model a memory
            of width `args.expert_width` is attached and one expert is activated, unless a `teacher_model` is given.
        reward_funcs (`RewardFunc` or list of them, *optional*):
            TRL reward functions. Default: the imitation reward with `args.gamma` and `args.z0`.
        args (`KnowledgeSeedingConfig`, *optional*):
            Configuration.
        train_dataset (`Dataset` or `IterableDataset`):
            The rows to train on.
        eval_dataset (`Dataset`, `IterableDataset` or a dict of them, *optional*):
            The rows to evaluate on.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer. Default: the model's.
        teacher_model (`str`, `PreTrainedModel` or a list of them, *optional*):
            A separate, frozen teacher with the student's tokenizer (a name is loaded as TRL does, in float32 unless
            `args.teacher_model_init_kwargs` has a `dtype`), smaller or larger than the student; of several, the
            mean of their distributions teaches. The model then trains whatever of it requires gradients. If that is a
            memory's learning expert, self-replay is still taught by the model itself.
        **kwargs:
            Everything else that [`~trl.GRPOTrainer`] takes; `peft_config` and `use_vllm` only with a `teacher_model`,
            since an expert is neither an adapter nor known to vLLM.

    Raises:
        `ValueError`: if the model's memory has no learning expert, or a row lacks a column.
    """

    _tag_names = ["trl", "sleep-trl", "knowledge-seeding"]
    _name = "Knowledge Seeding"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: KnowledgeSeedingConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        teacher_model: str | PreTrainedModel | Sequence[str | PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = KnowledgeSeedingConfig(f"{name.split('/')[-1]}-KnowledgeSeeding")
        check_arguments(args)
        default_reward: Any = None
        if reward_funcs is None:
            reward_funcs = default_reward = resolve("imitation", gamma=args.gamma, z0=args.z0)
        check_data(train_dataset, "train_dataset", args, reward_funcs)
        check_data(eval_dataset, "eval_dataset", args, reward_funcs)
        if teacher_model is None:
            check_that_experts_support(model, args, kwargs)
        super().__init__(
            model,
            reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if default_reward is not None:  # the end of an answer is not part of it
            default_reward.func.eos_token_ids = frozenset(self.eos_token_ids)
        # Done here: a rollout that ends before a stop string has no end-of-sequence token, and TRL would mask it.
        self._masks_truncated, self.mask_truncated_completions = bool(args.mask_truncated_completions), False
        init_kwargs: Any = args.teacher_model_init_kwargs  # as text it has become a mapping
        self.teachers = prepare_teachers(teacher_model, self.accelerator, init_kwargs)
        self._sft_weight = float(not self.teachers) if args.sft_weight is None else args.sft_weight
        if not self.teachers:
            ensure_learning_expert(self.model, args)
        self._rollout_hidden: torch.Tensor | None = None

    # -- the batch ------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Rows) -> Tensors:
        rows = self._with_token_ids(inputs)
        if self._learns_from_references():
            return self._text_inputs(rows, "prompt", "left") | self._teacher_inputs(rows, None)
        self._given_prompt_ids = [row["prompt_ids"] for row in rows] if "prompt_ids" in rows[0] else None
        self._stops = [row.get("stop", ()) for row in rows]
        most = self.max_completion_length
        self._limits = [min(most, row.get("max_completion_length") or most) for row in rows]
        self._general = [self.args.alpha > 0 and row.get("part") == "general" for row in rows]
        self._check_generation()
        with without_row_dump():
            output: Tensors = super()._generate_and_score_completions(rows)
        self._leave_out(output)
        self._given_prompt_ids = None
        self._stops, self._limits, self._general = [], [], []
        if (ratio := output.get("importance_sampling_ratio")) is not None:
            share = self.accelerator.gather(share_clipped(ratio, written_mask(output), self.args)).nanmean().item()
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["sampling/importance_sampling_ratio/clipped"].append(share)
        return output | self._teacher_inputs(rows, written_mask(output)) if self.args.alpha > 0 else output

    def _learns_from_references(self) -> bool:
        """Whether this batch is not rolled out: at the beginning of training, unless no reference has a weight, or
        because no rollout has one."""
        args, steps = self.args, self.state.max_steps
        first = first_rollout_step(args.alpha, args.lmbda, args.rollout_start, steps)
        is_early = self.model.training and self.state.global_step < first
        return is_early or (args.alpha == 1 and args.lmbda == 0)

    def _with_token_ids(self, rows: Rows) -> Rows:
        """Fill in texts where a row has only token ids, and the other way round. A reference ends with the
        end-of-sequence token."""
        template = self.args.teacher_prompt_template
        rows = normalize(rows)
        require(rows, "prompt")
        rows = [self._with_text(with_teacher_prompt(row, template)) for row in rows]
        tokenize_prompts = super()._tokenize_prompts

        def tokenize_prompt(texts: list[Any]) -> list[list[int]]:
            ids: list[list[int]] = tokenize_prompts(texts)[0]
            return ids

        ways: dict[str, Callable[[list[Any]], list[list[int]]]]
        ways = {"teacher_prompt": tokenize_prompt, "reference": self._tokenize_references}
        if "prompt_ids" in rows[0] or self._learns_from_references():
            ways["prompt"] = tokenize_prompt
        for name, tokenize in ways.items():
            lacking = [row for row in rows if row.get(name) is not None and row.get(f"{name}_ids") is None]
            for row, ids in zip(lacking, tokenize([row[name] for row in lacking]) if lacking else (), strict=True):
                row[f"{name}_ids"] = ids
        return rows

    def _tokenize_references(self, texts: list[str]) -> list[list[int]]:
        tokens = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*ids, self._tokenizer.eos_token_id] for ids in tokens]

    def _with_text(self, row: dict[str, Any]) -> dict[str, Any]:
        texts: dict[str, str] = {}
        for name in ("prompt", "reference"):
            if row.get(name) is None and row.get(f"{name}_ids") is not None:
                texts[name] = self._tokenizer.decode(row[f"{name}_ids"], skip_special_tokens=True)
        if row.get("reference") is not None:
            texts["reference"] = text_of_reference(row["reference"])
        return row | texts

    def _text_inputs(self, rows: Rows, name: str, side: str) -> Tensors:
        """Pad the ids of a column. Shapes `(batch, length)`."""
        require(rows, name)
        tensors = [torch.tensor(row[f"{name}_ids"], dtype=torch.long) for row in rows]
        padded = pad(tensors, padding_value=self._tokenizer.pad_token_id, padding_side=side)
        mask = pad([torch.ones_like(t) for t in tensors], padding_value=0, padding_side=side)
        device = self.accelerator.device
        return {f"{name}_ids": padded.to(device), f"{name}_mask": mask.to(device)}

    def _teacher_inputs(self, rows: Rows, rollout_mask: torch.Tensor | None) -> Tensors:
        """Pad the teacher's prompts (left) and references (right), and weight the rows: references alone if nothing is
        rolled out. Shapes `(batch, ...)`."""
        device = self.accelerator.device
        part = torch.tensor([PARTS.index(row.get("part", "memory")) for row in rows], device=device)
        inputs = {"part": part} | self._text_inputs(rows, "teacher_prompt", "left")
        inputs |= self._text_inputs(rows, "reference", "right")
        copies = torch.tensor(count_copies(rows), device=device)
        weigh, others = weigh_rows, (self.args.replay_weight, self.accelerator)
        lmbda = 0.0 if rollout_mask is None else self.args.lmbda
        if rollout_mask is not None:
            inputs["rollout_weight"] = weigh(part, torch.ones_like(part), rollout_mask, *others)
        from_references = torch.where(part == PARTS.index("general"), 1.0, 1.0 - lmbda)
        # A reference of three tokens teaches as much as one of sixty, or as a general one of 128 (ours).
        reference_weight = weigh(part, copies, inputs["reference_mask"], *others, per_row=True)
        inputs["reference_weight"] = reference_weight * from_references
        return inputs

    # -- the loss -------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        memory = Memory.of(self.accelerator.unwrap_model(model))
        with nullcontext() if memory is None else memory.hiding(self._dropped_experts(memory)):
            return super().training_step(model, *args, **kwargs)

    def _dropped_experts(self, memory: Memory) -> set[int]:
        """Draw the earlier experts that this optimizer step drops: the same in all processes, and after resuming."""
        rng = random.Random(f"{self.args.seed} {self.state.global_step}")
        kept = {memory.learning, *memory.in_base, *memory.blocks.values()}  # a level's block is in every view
        earlier = (index for index in memory.active if index not in kept)
        return {index for index in earlier if rng.random() < self.args.expert_dropout}

    def _compute_loss(self, model: nn.Module, inputs: Tensors) -> torch.Tensor:
        alpha, lmbda = self.args.alpha, self.args.lmbda
        if alpha == 0:
            return super()._compute_loss(model, inputs)

        texts = [
            (batch, batch["reference_ids"], batch["reference_mask"])
            for batch in spread_references(inputs, self.args.reference_passes)
        ]
        is_rolled_out = "completion_ids" in inputs
        rollout = [(inputs, inputs["completion_ids"], inputs["completion_mask"])] if is_rolled_out else []
        # The teacher runs first, while no graph of the student is held: their memory use does not add up.
        taught = [(batch | {"part": self._taught_part(batch["part"])}, ids, mask) for batch, ids, mask in texts]
        outputs = self._teacher_outputs(taught, rollout if lmbda > 0 else [])
        hidden = self._student_hidden(model, texts + rollout)
        loss: Any = 0.0
        if is_rolled_out:
            loss = self._rollout_loss(model, inputs, hidden[len(texts)], outputs[len(texts) :])
        parts = list(zip(hidden, outputs, texts, strict=False))
        sums = torch.cat([self._divergence(states, output, mask) for states, output, (_, _, mask) in parts], dim=1)
        rows = {name: torch.cat([batch[name] for batch, _, _ in texts]) for name in ("part", "reference_weight")}
        loss = loss + alpha * self._mean("reference", sums * (self._taught_part(rows["part"]) >= 0), rows)
        if self._sft_weight == 0:
            return loss
        losses = torch.cat(
            [
                self._cross_entropy(states, ids, mask * ~is_replay(batch["part"])[:, None])
                for states, _, (batch, ids, mask) in parts
            ]
        )
        share = self._sft_weight * ~is_replay(rows["part"])
        self._log_parts(
            "reference", rows["part"], torch.stack([losses.detach(), sums[1], sums[1] * 0]) * (share > 0), "sft"
        )
        return loss + alpha * ((losses - sums[0]) * share * rows["reference_weight"]).sum() * self._loss_scale()

    def _taught_part(self, part: torch.Tensor) -> torch.Tensor:
        """Return the part of each reference, -1 where its divergence has no weight, so that no teacher reads it."""
        return part if self._sft_weight < 1 else torch.where(is_replay(part), part, -1)

    def _cross_entropy(self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return each row's cross-entropy, summed over its tokens. Shape `(batch,)`."""
        with self.accelerator.autocast():
            log_probs, _ = log_probs_per_token(
                hidden, Head.of(self.accelerator.unwrap_model(self.model)), ids, mask, 1.0
            )
        return -log_probs.sum(1)

    def _rollout_loss(
        self, model: nn.Module, inputs: Tensors, hidden: torch.Tensor, outputs: list[list[TeacherOutput]]
    ) -> torch.Tensor:
        """Return the policy loss and, with `lmbda > 0`, the divergence on the rollouts, each with its weight."""
        alpha, lmbda = self.args.alpha, self.args.lmbda
        self._rollout_hidden = hidden  # one forward pass serves both
        policy_loss = super()._compute_loss(model, inputs)
        self._rollout_hidden = None
        loss: torch.Tensor = (1 - alpha) * policy_loss if alpha < 1 else policy_loss.detach() * 0.0
        for on_rollout in outputs:
            sums = self._divergence(hidden, on_rollout, written_mask(inputs))
            loss = loss + alpha * lmbda * self._mean("rollout", sums, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Score the completions. Anything but a training pass over text alone is left to TRL."""
        has_others = any(value is not None and value is not False for value in others.values())
        is_text = not has_others and not self.args.cast_lm_head_to_fp32
        if any(self._general) and is_text and self._is_whole:  # before the loss
            return self._score_rollouts(model, input_ids, attention_mask, logits_to_keep), None, None
        hidden = self._rollout_hidden
        if hidden is None or not compute_entropy or not is_text:
            log_probs, *rest = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
            has_none = torch.tensor(self._general or [False], device=log_probs.device)[:, None]
            return log_probs.masked_fill(has_none, 0.0), *rest
        ids, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:]
        head = Head.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            return *log_probs_per_token(hidden, head, ids, mask, self.temperature), None

    def _student_hidden(self, model: nn.Module, texts: list[Text]) -> list[torch.Tensor]:
        """Return the student's hidden states from which texts behind its prompts are predicted. Each is of shape
        `(rows, length, hidden)`."""
        behind = [((batch["prompt_ids"], batch["prompt_mask"]), (ids, mask)) for batch, ids, mask in texts]
        with self.accelerator.autocast():
            return self._read_behind(Teacher(self.accelerator.unwrap_model(model), model), behind)

    def _divergence(self, student: torch.Tensor, outputs: list[TeacherOutput], mask: torch.Tensor) -> torch.Tensor:
        """Return each row's divergence, number of tokens, and drift of hidden states. Shape `(3, batch)`."""
        head, beta = Head.of(self.accelerator.unwrap_model(self.model)), self.args.divergence_beta
        sums = torch.stack([output.divergence(student, head, mask, beta) for output in outputs]).sum(0)
        drift = torch.zeros_like(sums)
        if self.args.drift_weight:
            own = [output.drift(student, mask) for output in outputs if output.is_student]
            drift = torch.stack([drift, *own]).sum(0)
        return torch.stack([sums, mask.sum(1).float(), drift])

    def _mean(self, kind: str, sums: torch.Tensor, rows: Tensors) -> torch.Tensor:
        """Return the weighted sum over the rows, and log each part's mean per token."""
        weight = rows[f"{kind}_weight"]
        self._log_parts(kind, rows["part"], sums.detach() * (weight > 0))
        divergence, _, drift = sums
        per_row = divergence + self.args.drift_weight * drift * is_replay(rows["part"])
        return (per_row * weight).sum() * self._loss_scale()

    def _log_parts(self, kind: str, part: torch.Tensor, sums: torch.Tensor, name_of: str = "divergence") -> None:
        totals = torch.zeros(len(PARTS), 3, device=sums.device).index_add_(0, part, sums.T)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, (divergence, count, drift) in zip(PARTS, self.accelerator.reduce(totals).tolist(), strict=True):
            if count:
                metrics[f"{name_of}/{name}/{kind}"].append(divergence / count)
                if drift:
                    metrics[f"drift/{name}/{kind}"].append(drift / count)
