"""One run as one frozen model: YAML in, dotted overrides on top, validated once. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .reward_spec import RewardSpec


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
    """Weight of the divergence on self-replay rows, against 1 for the memory's."""

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


class DreamConfig(Section):
    """Dreaming, after Knowledge Seeding: what `DreamingTrainer` is told, and how its dreams are learnt."""

    rounds: int = Field(0, ge=0)
    """Rounds of dreaming: dream about every window, try the dreams out, learn to write those that helped. 0: none."""

    template: str = "notes"
    """What a dream is: notes, implications, questions, paraphrase, or the path of a Jinja file without a request."""

    window: int | None = Field(None, ge=16)
    """Tokens of a memory in one task. Default: dataset.window."""

    dreams_per_task: int = Field(8, ge=2)
    """Dreams of each task in a round (the paper's m)."""

    max_new_tokens: int = Field(128, ge=1)
    """Longest dream, in tokens."""

    selection: Literal["gradient_norm", "gradient_alignment", "random", "all"] = "gradient_norm"
    """What dreams are selected by before they are tried out; alignment is with the gradient of the night's samples."""

    top_k: int = Field(4, ge=0)
    """Best dreams of a task that are tried out."""

    random_k: int = Field(1, ge=0)
    """Further dreams of a task, drawn among the others (the paper's b)."""

    random_expert: bool = False
    """Let every router also take one random further expert while dreams are sampled. Needs memory.routing topk."""

    improvement: Literal["rest_em", "grpo"] = "rest_em"
    """How the dreamer gets better: by the likelihood of the dreams that helped (the paper), or by GRPO."""

    em_epochs: int = Field(1, ge=1)
    """Passes over a round's dreams with which the dreamer learns."""

    learning_rate: float = Field(2e-4, gt=0)
    """Learning rate of the dreamer."""

    batch_size: int = Field(32, ge=1)
    """Dreams in one step of the dreamer on one device, at most."""

    measure: Literal["quiz", "questions"] = "quiz"
    """What a dream is to improve: quiz, questions that the model writes itself; or the memories' own questions, which
    then no longer tell what was learnt from what was asked."""

    questions_per_task: int = Field(8, ge=1)
    """Questions tried for each task of the quiz. Kept are those that get the same answer three times."""

    test: Literal["sign", "bootstrap", "mcnemar"] = "bootstrap"
    """When a gain is believed: by a paired test, or by its bare sign (the paper). Uncertain dreams abstain."""

    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence of the test and of the intervals."""

    repeats: int = Field(1, ge=1)
    """Most often that a dream of uncertain sign is learnt again."""

    lora_rank: int = Field(8, ge=1)
    """Rank of the adapters by which dreams are tried out, each alone, in copies of the model that share its weights."""

    lora_alpha: float = Field(16.0, gt=0)
    """LoRA's alpha: an adapter counts alpha / rank."""

    lora_steps: int = Field(10, ge=1)
    """Optimizer steps with which an adapter learns its dream."""

    lora_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the adapters."""

    rewards: tuple[RewardSpec, ...] = Field((RewardSpec(name="improvement"),), min_length=1)
    """Rewards of dreams: improvement, quiz_gain, novelty, faithfulness, format, length, or one's own."""

    into: Literal["expert", "lora"] = "expert"
    """What learns the rewarded dreams of the last round. expert: the new one, by Knowledge Seeding. lora: an adapter
    over the grown model, in dream_adapter/, which stays as it is until you merge it; needs memory.routing dense."""

    steps: int = Field(50, ge=1)
    """Optimizer steps with which they are learnt."""

    share: float = Field(0.4, gt=0, lt=1)
    """Share of dreams among the rows of those steps; the rest is the night's data set, in its own shares."""

    @model_validator(mode="after")
    def _selects_some(self) -> Self:
        chosen = self.top_k + self.random_k
        if self.selection != "all" and not 0 < chosen <= self.dreams_per_task:
            raise ValueError(
                f"top_k ({self.top_k}) and random_k ({self.random_k}) select {chosen} of {self.dreams_per_task} dreams "
                f"of a task; select at least 1 and at most dreams_per_task"
            )
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

    gpus_per_engine: float | None = Field(None, ge=0)
    """GPUs of an engine of a pool; a fraction shares one. Default: gpu_memory if there is a GPU, beside the trainer."""

    gpu_memory: float = Field(0.3, gt=0, le=1)
    """Share of a GPU's memory that a vLLM takes."""

    timeout_s: float = Field(600, gt=0)
    """Seconds within which an engine of a pool has to answer; then it is replaced, and its prompts go elsewhere."""

    start_timeout_s: float = Field(300, gt=0)
    """Seconds within which an engine of a pool has to start and take its weights."""

    ray_address: str | None = None
    """host:port of a running Ray cluster. Default: a Ray of this machine alone is started."""


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


class RunConfig(Section):
    """One night of a language model: memories in, a larger model that knows them out."""

    model: str = Field(min_length=1)
    """Model: a name on the Hugging Face hub or a folder. Safetensors only; no remote code is run."""

    teacher_model: tuple[str, ...] = ()
    """Another model with the same tokenizer, such as a smaller one, that reads and teaches the memories in the model's
    place; of several, the mean of their distributions teaches. Self-replay stays the model's own."""

    memories: str = Field(min_length=1)
    """Memories: a .jsonl file (text, optional id, source, questions), a folder of .txt and .md files, or the name or
    folder of a data set with a text column."""

    output_dir: Path = Path("runs/night")
    """Folder of the run: results.json, report.html, ledger.jsonl, adapter/, model/ (not if memory.routing is topk)."""

    nights: tuple[str, ...] = ()
    """A life of several nights, in place of memories: what each is about, in the form of memories. Every night
    continues the one before, in output_dir/night-001 and so on; one that is finished is not slept again."""

    continue_from: Path | None = None
    """Folder of an earlier run: its experts stay, its prompts are replayed, its recall is measured again."""

    resume: bool = False
    """Go on with the interrupted run in output_dir."""

    dry_run: bool = False
    """Check everything, print the plan (parameters, memory, steps) and stop."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of everything that is drawn."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the frozen base. auto: bfloat16 where the GPU has it, else float32. Experts are always float32."""

    max_context: int | None = Field(None, ge=32)
    """Tokens of context to use, prompt and answer together. Default: the model's limit."""

    chat_template_kwargs: dict[str, Any] = {"enable_thinking": False}
    """Variables for the model's chat template, if it has one."""

    memory: MemoryConfig = MemoryConfig()
    """Size of the memory."""

    dataset: DatasetConfig = DatasetConfig()
    """The teacher's data set and self-replay."""

    seeding: SeedingConfig = SeedingConfig()
    """Knowledge Seeding."""

    dream: DreamConfig = DreamConfig()
    """Dreaming."""

    rewards: tuple[RewardSpec, ...] = Field((RewardSpec(name="imitation"),), min_length=1)
    """Rewards of seeding: registered names, pkg.mod:function or file.py:function, or objects with name, weight, params,
    timeout_s and on_error."""

    rollout: RolloutConfig = RolloutConfig()
    """What generates."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation before and after."""

    report: bool = True
    """Write report.html (needs the extra `report`)."""

    @field_validator("teacher_model", mode="before")
    @classmethod
    def _is_one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _begins_with_its_first_night(cls, values: Any) -> Any:
        nights = values.get("nights") if isinstance(values, dict) else None
        if not nights or not isinstance(nights, list | tuple):
            return values
        if (memories := values.get("memories", nights[0])) != nights[0]:
            raise ValueError(
                f"nights begins with {nights[0]}, but memories is {memories}. Give one night by memories, or several "
                f"by nights alone"
            )
        return {**values, "memories": nights[0]}

    @field_validator("output_dir")
    @classmethod
    def _is_no_file(cls, value: Path) -> Path:
        if value.is_file():
            raise ValueError(f"{value} is a file; give a folder that exists or can be made")
        return value

    @model_validator(mode="after")
    def _builds_on_another_run(self) -> Self:
        here = self.output_dir.absolute()
        if self.continue_from is not None and self.continue_from.absolute() == here:
            raise ValueError(
                f"continue_from and output_dir are the same folder ({self.output_dir}); give a new "
                f"folder as output_dir, or --resume to go on with an interrupted run"
            )
        return self

    @model_validator(mode="after")
    def _dreams_as_its_memory_can(self) -> Self:
        if self.dream.random_expert and self.continue_from is None and self.memory.routing == "dense":
            raise ValueError(
                "dream.random_expert needs memory.routing topk: with dense every expert takes part already, so there "
                "is no further one"
            )
        if self.dream.into == "lora" and self.memory.routing == "topk":
            raise ValueError(
                "dream.into lora needs memory.routing dense: with topk there is no grown checkpoint for an adapter"
            )
        if (taken := self.dream.share + self.dataset.general_share + self.dataset.earlier_share) >= 1:
            raise ValueError(
                f"dream.share ({self.dream.share}), dataset.general_share ({self.dataset.general_share}) and "
                f"dataset.earlier_share ({self.dataset.earlier_share}) add up to {taken:g} and leave no share for the "
                f"memory; their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _has_whole_batches(self) -> Self:
        size, rollouts = (
            self.seeding.per_device_batch_size,
            self.seeding.prompts_per_step * self.seeding.num_generations,
        )
        if size is not None and rollouts % size:
            raise ValueError(
                f"seeding.per_device_batch_size ({size}) must divide the {rollouts} rollouts of a step "
                f"(prompts_per_step x num_generations)"
            )
        return self
