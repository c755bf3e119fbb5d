"""Sections of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .paths import with_paths


class Section(BaseModel):
    """A section of the configuration: frozen, unknown keys are errors, and `~` in a path is the home folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _expand_paths(cls, values: Any) -> Any:
        return with_paths(values) if isinstance(values, Mapping) else values


class MemoryConfig(Section):
    """Size of the memory. The first night fixes it; later nights take it from the run they continue."""

    width: int = Field(64, ge=1)
    """Hidden units per expert in each layer (the paper's d_low). Must be smaller than the model's hidden size."""

    max_experts: int = Field(8, ge=1)
    """Experts allocated per layer. A night needs one, so this is how many nights the memory can hold."""

    routing: Literal["dense", "topk"] = "dense"
    """How experts are chosen for a token. dense: all active experts, so the grown model folds into a standard
    checkpoint. topk: a router per MLP chooses; the experts do not fold and stay in adapter/."""

    top_k: int = Field(2, ge=1)
    """Experts per token with routing topk. At most max_experts."""

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.routing == "dense" and self.top_k != type(self).model_fields["top_k"].default:
            raise ValueError(f"top_k ({self.top_k}) requires routing topk; with dense every token goes to every expert")
        if self.routing == "topk" and self.top_k > self.max_experts:
            raise ValueError(f"top_k ({self.top_k}) must not be larger than max_experts ({self.max_experts})")
        return self


class DatasetConfig(Section):
    """The data set the teacher writes about the memories, and the self-replay that protects earlier skills."""

    templates: tuple[str, ...] = Field(("question_answer", "statement"), min_length=1)
    """Prompt templates: built-in names or paths to Jinja files. question_answer lets the teacher ask and answer about
    each sentence; statement takes the sentences themselves, each asked for by cues."""

    samples_per_sentence: int = Field(2, ge=1)
    """Samples learned per template about each sentence of a memory, at most: fewer if the teacher writes too few that
    are usable, or seeding.steps has no room for them. Of a template that is about whole windows, per window."""

    tries_per_sample: int = Field(3, ge=1)
    """How often a sample is written at most, with templates that let the teacher ask: one that is dropped is tried
    again, with another question."""

    cues_per_sentence: int = Field(4, ge=1)
    """Prompts under which the template statement teaches each sentence: each has the title of the document and a cue, a
    few words of the sentence. Nothing is generated for them."""

    samples_per_window: int | None = Field(None, ge=1)
    """Samples per template and window instead, about its sentences in turn."""

    worked_examples: bool = True
    """Put the templates' worked examples before prompts with a context, as earlier turns of a chat. They take at most a
    quarter of the context, and 1,024 tokens."""

    titles: bool = True
    """Put the title of a memory, or its first words, above each of its windows and before questions that name
    nothing."""

    check_answers: bool = True
    """Keep an answer only if the teacher gives it again, most words that it adds to the question stand in the sentence
    asked about or the one before, and the model does not give it without the text. If one of the first two fails, that
    sentence is learned as the answer."""

    window: int | None = Field(None, ge=16)
    """Tokens of a memory that the teacher sees at once. Default: 256, or as many as fit the context with prompt and
    answer."""

    window_overlap: int = Field(32, ge=0)
    """Tokens shared by consecutive windows of a long memory, in whole sentences. At most half a window."""

    max_new_tokens: int = Field(64, ge=1)
    """Maximum length of a teacher sample, in tokens."""

    keep_thoughts: bool = False
    """Also learn what a reasoning model writes between <think> and </think>. Otherwise samples and replies begin after
    it, and a completion that ends inside it is empty."""

    keep_truncated: bool = False
    """Keep samples that were cut off at max_new_tokens. Otherwise they are dropped and counted."""

    ask_temperature: float = Field(0.4, gt=0)
    """Sampling temperature for the requests (such as questions) that the teacher writes."""

    temperature: float = Field(0.4, gt=0)
    """Sampling temperature for the teacher's answers. What the student learns is its whole distribution."""

    top_p: float = Field(0.95, gt=0, le=1)
    """Requests and answers are sampled from the most likely tokens whose probabilities add up to this."""

    prefix_share: float = Field(0.5, ge=0, le=1)
    """Share of rows where the student continues a teacher sample after a random prefix; the rest start at its
    beginning, as all rows do before rollouts begin."""

    general_samples: int = Field(128, ge=0)
    """General samples written by the model without the memory, for self-replay. Each begins with another of the general
    texts until all are used."""

    general_texts: Path | None = None
    """JSON Lines file of texts, not memories, with which general samples begin. For a chat model they are the messages
    that it answers, for a base model the beginnings that it continues. Pick what the model usually gets. Default: 410
    varied prompts that come with the package (instructions, talk, code, sums, lists, 32 languages)."""

    general_max_new_tokens: int = Field(128, ge=1)
    """Maximum length of a general sample, in tokens. Longer answers are cut there and kept."""

    plain_texts: Path | None = None
    """JSON Lines file of texts, not memories, that the model reads as they are, without prompt or chat template, for
    self-replay of ordinary writing. Default: 39 texts that come with the package, none of those on which the perplexity
    is measured, unless the tokenizer does not know them."""

    plain_share: float = Field(0.5, ge=0, le=1)
    """Share of the general samples that are pieces of plain texts, as far as these go."""

    general_share: float = Field(0.25, ge=0, le=1)
    """Share of training rows used for general self-replay."""

    earlier_share: float = Field(0.25, ge=0, le=1)
    """Share of training rows used for prompts of earlier nights. On a first night it goes to the memories."""

    @model_validator(mode="after")
    def _check_window_overlap(self) -> Self:
        if self.window is not None and self.window_overlap >= self.window:
            raise ValueError(f"window_overlap ({self.window_overlap}) must be smaller than window ({self.window})")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.general_share + self.earlier_share >= 1:
            raise ValueError(
                f"general_share ({self.general_share}) and earlier_share ({self.earlier_share}) leave no share for the "
                f"memories; their sum must be below 1"
            )
        return self


class Batches(NamedTuple):
    """How the rollouts of one optimizer step are split."""

    per_device: int
    """Rollouts in one forward pass on one device."""

    accumulation: int
    """Forward passes of each process in a step."""


def first_rollout_step(alpha: float, lmbda: float, rollout_start: float, steps: int) -> int:
    """Return the step from which prompts are rolled out: the first if references have no weight, none if rollouts have
    none, else after the share `rollout_start` of the steps."""
    if alpha == 0 or lmbda == 1:
        return 0
    return steps if alpha == 1 and lmbda == 0 else int(rollout_start * steps)


class SeedingConfig(Section):
    """Knowledge Seeding: arguments of `KnowledgeSeedingTrainer`."""

    alpha: float = Field(0.7, ge=0, le=1)
    """Weight of the divergence; 1 - alpha is the weight of the policy loss. 0 is GRPO, 1 is pure distillation."""

    lmbda: float = Field(0.5, ge=0, le=1)
    """Weight of the divergence on the student's own rollouts; 1 - lmbda on the teacher's samples."""

    rollout_start: float = Field(0.9, ge=0, le=1)
    """Share of the steps before rollouts begin. Until then the expert learns from the teacher's samples alone: a
    student that knows nothing has little to say, and rollouts take most of a step. 0: from the first step, as with
    lmbda 1, which learns from rollouts alone. Below 1, the last step always has rollouts. 1: never."""

    divergence_beta: float = Field(0.0, ge=0, le=1)
    """Divergence: 0 is forward KL(teacher || student), 1 is reverse KL, between is the generalized JSD."""

    sft_weight: float | None = Field(None, ge=0, le=1)
    """Share of the cross-entropy, SFT's loss, on samples about memories; the rest is the divergence, which self-replay
    and rollouts always have. Default: 1 if the model teaches itself, since one that reads badly is unsure even of
    samples that were checked against the text; 0 if other models teach it."""

    gamma: float = Field(0.5, ge=0, le=1)
    """Weight of the judge in the imitation reward; 1 - gamma is the weight of the edit distance (Eq. 3)."""

    z0: float | None = Field(None, gt=0)
    """Edit distance above which that term of the reward is 0 (Eq. 4): in tokens, or as a share of the length if below
    1."""

    replay_weight: float = Field(8.0, ge=0)
    """Weight of self-replay rows in divergence and drift, relative to 1 for memory rows."""

    drift_weight: float = Field(0.0, ge=0)
    """Weight of the hidden-state drift on self-replay rows, in addition to their divergence. Protects existing
    knowledge better than the divergence alone; large values slow down learning."""

    expert_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a step leaves out an earlier expert, so that the new expert does not depend on it and an entry
    can be dropped without losing later ones. Slows down learning."""

    reference_passes: int = Field(1, ge=1)
    """Forward passes for the teacher samples of a batch, grouped by length. More passes waste less on padding."""

    passes: float = Field(4.0, ge=1)
    """How often a night trains on each sample about its memories, on average. Determines the number of steps, so that a
    night is as long as what there is to learn."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps per night, instead of passes (paper: 100). No more is written than fits in them, and documents
    that do not fit wait for another night."""

    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of AdamW. The paper's 5e-6 is for LoRA; a new expert starts at zero and needs more. Higher
    values learn faster and cost more of the base skill."""

    lr_scheduler_type: str = "cosine"
    """Learning rate schedule, by its transformers name."""

    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warmup."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum gradient norm; larger gradients are clipped."""

    prompts_per_step: int = Field(8, ge=1)
    """Prompts per optimizer step, over all processes (paper: an effective batch of 32 = prompts x generations)."""

    num_generations: int = Field(4, ge=2)
    """Student rollouts per prompt."""

    max_completion_length: int = Field(64, ge=1)
    """Maximum length of a rollout, in tokens."""

    per_device_batch_size: int | None = Field(None, ge=1)
    """Rollouts per forward pass on one device; the rest is gradient accumulation. Default: all at once."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Saves memory, takes about 20-30 % longer."""

    logging_steps: int = Field(5, ge=1)
    """Steps between log lines."""

    save_steps: int = Field(50, ge=1)
    """Steps between checkpoints. --resume continues from the last one."""

    extra: dict[str, Any] = {}
    """More arguments for TRL's GRPOConfig, such as {"report_to": "wandb"}, passed through unchanged; or a YAML file of
    them."""

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
    """The engine that generates the teacher's data set, the student's rollouts and the answers to questions."""

    engine: Literal["auto", "transformers", "vllm", "ray"] = "auto"
    """What generates. transformers: the model itself, in this process. vllm: vLLM in this process. ray: a pool of
    either, as Ray actors, which all processes share. auto: vLLM if it is installed and can hold the grown model
    (without a GPU: and the model has at least 10 million MLP weights; with one: and they fit gpu_memory), in this
    process or, if there are several with GPUs, in a pool; otherwise transformers. The log says why."""

    inner_engine: Literal["auto", "transformers", "vllm"] = "auto"
    """Type of the engines in a pool. auto: vllm on GPUs, otherwise transformers."""

    num_engines: int | None = Field(None, ge=1)
    """Engines in a pool. If some cannot be kept alive it continues with fewer and logs it. Default: one for each GPU of
    this machine, or two without GPUs."""

    gpus_per_engine: float | None = Field(None, ge=0, le=1)
    """GPUs per engine in a pool; a fraction shares one. Default: with GPUs, gpu_memory, or more than half a GPU if
    there is one for each engine. The trainer needs its own share as well."""

    gpu_memory: float = Field(0.3, gt=0, le=1)
    """Share of a GPU's memory that a vLLM engine reserves."""

    timeout_s: float = Field(600, gt=0)
    """Seconds an engine in a pool has to answer. After that it is replaced and its prompts go to another one."""

    start_timeout_s: float = Field(300, gt=0)
    """Seconds an engine in a pool has to start and load its weights."""

    ray_address: str | None = None
    """host:port of a running Ray cluster, for engines and dream.workers. Default: start Ray on this machine only."""


class EvaluationConfig(Section):
    """The evaluation before and after the night."""

    skill: Path | None = None
    """JSON Lines file of texts with questions that the model can answer from its context and must not forget how to.
    The base skill is the share that it answers. Default: 150 questions on passages that come with the package."""

    perplexity: Path | None = None
    """JSON Lines file of texts on which the perplexity of the model is measured, with nothing before them, in windows
    of at most 1,024 tokens. Default: 40 texts of ordinary writing that come with the package, unless the tokenizer does
    not know them."""

    teacher_questions: float = Field(0.1, ge=0, le=0.5)
    """For memories without questions: share of the questions that the teacher wrote about them that is not trained on
    but asked before and after the night, at least 4, if there are 20 about sentences with another sample. 0: none."""

    metric: Literal["exact", "contains", "f1"] = "contains"
    """How an answer is scored. exact: equal after normalization. contains: contained in the reply. f1: token F1."""

    max_new_tokens: int = Field(32, ge=1)
    """Maximum length of a reply, in tokens."""

    batch_size: int = Field(64, ge=1)
    """Prompts per generation batch on one device."""

    max_questions: int = Field(2000, ge=1)
    """Maximum questions per metric. If there are more, a sample is drawn with the run's seed and logged."""
