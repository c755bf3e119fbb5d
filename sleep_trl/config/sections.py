"""Parts of a run's configuration."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .schedule import Schedule


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class MemoryConfig(Section):
    """Size of the memory. Fixed by the first night; later nights take it from the run they continue."""

    width: int = Field(64, ge=1)
    """Hidden units of one expert in each layer (the paper's d_low). Must be smaller than the model's hidden size."""

    max_experts: int = Field(8, ge=1)
    """Experts allocated in each layer: the number of nights that the memory has room for."""

    routing: Literal["dense", "topk"] = "dense"
    """How experts are chosen. dense: all active ones, so that the grown model folds into a standard checkpoint. topk: a
    router beside each MLP chooses for each token; the experts stay beside the base, in adapter/."""

    top_k: int = Field(2, ge=1)
    """Experts for each token with routing topk. At most max_experts."""

    @model_validator(mode="after")
    def _chooses_among_its_experts(self) -> Self:
        if self.routing == "dense" and self.top_k != type(self).model_fields["top_k"].default:
            raise ValueError(f"top_k ({self.top_k}) is for routing topk; with dense a token goes to every expert")
        if self.routing == "topk" and self.top_k > self.max_experts:
            raise ValueError(f"top_k ({self.top_k}) must not be larger than max_experts ({self.max_experts})")
        return self


class DatasetConfig(Section):
    """The data set that the teacher writes about the memories, and the self-replay that protects older skills."""

    templates: tuple[str, ...] = Field(("question_answer", "continuation", "paraphrase", "summary"), min_length=1)
    """Prompt templates: built-in names or paths of Jinja files."""

    samples_per_window: int = Field(16, ge=1)
    """Samples that the teacher writes for each template and window of a memory."""

    window: int | None = Field(None, ge=16)
    """Tokens of a memory that the teacher sees at once. Default: what fits the context beside prompt and answer."""

    window_overlap: int = Field(32, ge=0)
    """Tokens by which neighbouring windows of a long memory overlap, in whole sentences."""

    max_new_tokens: int = Field(128, ge=1)
    """Longest sample of the teacher, in tokens."""

    keep_truncated: bool = False
    """Keep samples that did not end within max_new_tokens. Otherwise they are dropped and counted."""

    ask_temperature: float = Field(1.0, gt=0)
    """Sampling temperature of requests (questions) that the teacher thinks of."""

    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the teacher's answers."""

    prefix_share: float = Field(0.5, ge=0, le=1)
    """Share of rows in which the student starts inside a teacher's sample, after a random prefix; else at its start."""

    general_samples: int = Field(128, ge=0)
    """General samples of the model without the memory, for self-replay."""

    general_texts: Path | None = None
    """JSON lines of text (no memories) with which general samples begin: what the model is used to reading. Without it,
    the model begins by itself."""

    general_max_new_tokens: int = Field(128, ge=1)
    """Length of a general sample, in tokens."""

    general_share: float = Field(0.25, ge=0, le=1)
    """Share of training rows that are general self-replay."""

    earlier_share: float = Field(0.25, ge=0, le=1)
    """Share of training rows that are prompts of earlier nights. Goes to the memory part on a first night."""

    @model_validator(mode="after")
    def _has_windows_that_advance(self) -> Self:
        if self.window is not None and self.window_overlap >= self.window:
            raise ValueError(f"window_overlap ({self.window_overlap}) must be smaller than window ({self.window})")
        return self

    @model_validator(mode="after")
    def _leave_room_for_the_memory(self) -> Self:
        if self.general_share + self.earlier_share >= 1:
            raise ValueError(
                f"general_share ({self.general_share}) and earlier_share ({self.earlier_share}) leave no share for the "
                f"memory; their sum must be below 1"
            )
        return self


class Batches(NamedTuple):
    """How the rollouts of one optimizer step are split."""

    per_device: int
    """Rollouts in one forward pass on one device."""

    accumulation: int
    """Forward passes of each process in a step."""


class SeedingConfig(Section):
    """Knowledge Seeding: what `KnowledgeSeedingTrainer` is told."""

    alpha: float = Field(0.7, ge=0, le=1)
    """Weight of the divergence; 1 - alpha is the weight of the policy loss. 0 is GRPO, 1 is distillation."""

    lmbda: float = Field(0.5, ge=0, le=1)
    """Weight of the divergence on the student's own rollouts; 1 - lmbda on the teacher's samples."""

    divergence_beta: float = Field(0.0, ge=0, le=1)
    """0: forward KL(teacher || student), 1: reverse KL, between: generalized Jensen-Shannon divergence."""

    gamma: float = Field(0.5, ge=0, le=1)
    """Weight of the judge in the imitation reward; 1 - gamma is the weight of the edit distance (Eq. 3)."""

    z0: float | None = Field(None, gt=0)
    """Edit distance above which that part of the reward is 0 (Eq. 4): tokens, or a share of the length if below 1."""

    replay_weight: float = Field(1.0, ge=0)
    """Weight of the self-replay rows, in divergence and drift, against 1 for the memory's."""

    drift_weight: float = Field(0.0, ge=0)
    """Weight of the drift of hidden states on self-replay rows, beside their divergence. It protects what the model
    knows more than the divergence alone, and slows learning when it is large."""

    expert_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which a step leaves out each earlier expert, so that the new one does not lean on them: an entry
    can then be dropped and later ones stay. It slows learning."""

    reference_passes: int = Field(1, ge=1)
    """Forward passes in which a batch's teacher samples are read, by length: more of them waste less on padding."""

    steps: int = Field(100, ge=1)
    """Optimizer steps of the night (paper: 100)."""

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW (paper, for LoRA: 5e-6; a new expert starts at zero and needs more)."""

    lr_scheduler_type: str = "cosine"
    """Learning rate schedule, by its name in transformers."""

    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warm-up."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""

    prompts_per_step: int = Field(8, ge=1)
    """Prompts in an optimizer step, over all processes (paper: effective batch 32 = prompts x generations)."""

    num_generations: int = Field(4, ge=2)
    """Rollouts of the student for each prompt."""

    max_completion_length: int = Field(128, ge=1)
    """Longest rollout, in tokens."""

    per_device_batch_size: int | None = Field(None, ge=1)
    """Rollouts in one forward pass on one device; the rest is gradient accumulation. Default: all at once."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, some 20 to 30 % more time."""

    logging_steps: int = Field(5, ge=1)
    """Steps between two log lines."""

    save_steps: int = Field(50, ge=1)
    """Steps between two checkpoints, from which --resume goes on."""

    extra: dict[str, Any] = {}
    """Further arguments of TRL's GRPOConfig, such as {report_to: wandb}, passed on unchanged."""

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts of one optimizer step, over all processes."""
        return self.prompts_per_step * self.num_generations

    def batches(self, processes: int) -> Batches:
        """Split the rollouts of a step over processes, and over forward passes on each.

        Raises:
            `ValueError`: if they cannot be split evenly.
        """
        per_device = self.per_device_batch_size or max(1, self.rollouts_per_step // processes)
        accumulation, left = divmod(self.rollouts_per_step, per_device * processes)
        if left:
            over = f"over {processes} processes " if processes > 1 else ""
            raise ValueError(
                f"the {self.rollouts_per_step} rollouts of a step (prompts_per_step x num_generations) cannot be split "
                f"{over}into batches of {per_device}. Change seeding.prompts_per_step or seeding.per_device_batch_size."
            )
        return Batches(per_device, accumulation)

    @model_validator(mode="after")
    def _has_whole_batches(self) -> Self:
        self.batches(processes=1)
        return self


class RolloutConfig(Section):
    """What generates: the teacher's data set, the student's rollouts, and the answers to questions."""

    engine: Literal["auto", "transformers", "vllm", "ray"] = "auto"
    """transformers: in the process, on the model itself. vllm: a vLLM in the process. ray: a pool of either as Ray
    actors. auto: vllm if it is installed and can hold the grown model (without a GPU from 10 million MLP weights on),
    else transformers; the run prints why."""

    inner_engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What the engines of a pool are; auto: vllm on GPUs, else transformers."""

    num_engines: int = Field(2, ge=1)
    """Engines of a pool. It may go on with fewer if some cannot be kept alive, and says so."""

    gpus_per_engine: float | None = Field(None, ge=0, le=1)
    """GPUs of an engine of a pool; a fraction shares one. Default: gpu_memory if there is a GPU, and more than half if
    each engine can have another; beside the trainer."""

    gpu_memory: float = Field(0.3, gt=0, le=1)
    """Share of a GPU's memory that a vLLM takes."""

    timeout_s: float = Field(600, gt=0)
    """Seconds within which an engine of a pool has to answer; then it is replaced, and its prompts go elsewhere."""

    start_timeout_s: float = Field(300, gt=0)
    """Seconds within which an engine of a pool has to start and take its weights."""

    ray_address: str | None = None
    """host:port of a running Ray cluster, for engines and for dream.workers. Default: a Ray of this machine alone is
    started."""


class EvaluationConfig(Section):
    """What is asked before and after the night."""

    skill: Path | None = None
    """JSON lines of text and questions: what the model can answer from its context and must not forget. Without it, the
    skill is the share of greedy next tokens of general samples on which the grown model agrees with the base."""

    metric: Literal["exact", "contains", "f1"] = "contains"
    """When an answer counts as right: equal after normalization, contained in the reply, or by token F1 (a mean)."""

    max_new_tokens: int = Field(32, ge=1)
    """Longest reply, in tokens."""

    batch_size: int = Field(64, ge=1)
    """Prompts generated at once on one device."""

    max_questions: int = Field(2000, ge=1)
    """Questions asked at most for each figure; more are sampled with the run's seed, and the log says so."""


class LevelsConfig(Section):
    """Levels of the memory: when the experts of one become a single expert of the next, and what makes room."""

    chunks: tuple[int, ...] = ()
    """Tokens of wake input after which a level is consolidated into the next, the context (level 0) first, such as
    1000,5000,10000; each divides the next. Default: nights learn into level 1, and nothing falls due."""

    when_full: Literal["stop", "promote", "merge"] = "stop"
    """What happens when a night would take the last free expert. stop: it takes it, and the next one is refused.
    promote: the fastest level with two experts or more becomes one expert of the next. merge: the two least used
    experts of the fullest level become one of it."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps in which experts become one. Default: as many as a night's own for each of them, since one
    has to learn what all of them did."""

    learning_rate: float = Field(0.0, ge=0)
    """Size of the step that each level takes at the end of its chunk, along the gradients of all that was heard since
    the last one (Eq. 2). Above 0 each level has a block of its own for that, which takes one of memory.max_experts."""

    @field_validator("when_full", mode="before")
    @classmethod
    def _accept_its_former_name(cls, value: Any) -> Any:
        if value == "onward":
            warnings.warn("levels.when_full: 'onward' is now 'promote'; the old name goes in 0.3.", FutureWarning, 2)
            return "promote"
        return value

    @model_validator(mode="after")
    def _has_chunks_that_divide(self) -> Self:
        if self.chunks:
            Schedule(self.chunks)
        elif self.learning_rate:
            raise ValueError(
                f"learning_rate ({self.learning_rate:g}) is for levels with chunks, at whose end it is applied; give "
                f"--levels.chunks, such as 1000,5000,10000"
            )
        return self


class RetentionConfig(Section):
    """What a night may cost. One that costs more is rolled back: its expert is reset, and what was heard stays
    queued."""

    max_forgetting: float | None = Field(None, ge=0, le=1)
    """Share by which the mean recall of earlier nights may fall, such as 0.05. Default: no limit."""

    max_skill_loss: float | None = Field(None, ge=0, le=1)
    """Share by which the base skill may fall, such as 0.01. Default: no limit."""
