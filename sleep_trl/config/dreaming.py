"""The section of a run's configuration about dreaming."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from .reward import JudgeSpec, RewardSpec, names_a_function, refuse_bare_file
from .sections import Section

MEASURES = ("quiz", "questions", "heldout_loss")


class DreamConfig(Section):
    """Dreaming, after Knowledge Seeding: arguments of `DreamingTrainer`, and how its dreams are learned."""

    rounds: int = Field(0, ge=0)
    """Rounds of dreaming: dream about every window, try the dreams out, learn to write the ones that helped. 0:
    none."""

    template: str = "notes"
    """Form of a dream: notes, implications, questions, paraphrase, or the path of a Jinja file without a request."""

    window: int | None = Field(None, ge=16)
    """Tokens of a memory per task. Default: dataset.window."""

    dreams_per_task: int = Field(8, ge=2)
    """Dreams per task in a round (the paper's m)."""

    max_new_tokens: int = Field(128, ge=1)
    """Maximum length of a dream, in tokens."""

    selection: Literal["gradient_norm", "gradient_alignment", "random", "all"] = "gradient_norm"
    """How dreams are ranked before they are tried out. gradient_alignment compares them with the night's samples."""

    top_k: int = Field(4, ge=0)
    """Best dreams per task to try out."""

    random_k: int = Field(1, ge=0)
    """Further dreams per task to try out, drawn at random among the others (the paper's b)."""

    random_expert: bool = False
    """Have every router add one random expert while dreams are sampled. Requires memory.routing topk."""

    improvement: Literal["rest_em", "grpo"] = "rest_em"
    """How the dreamer improves. rest_em: likelihood of the dreams that helped (the paper). grpo: GRPO's loss."""

    em_epochs: int = Field(1, ge=1)
    """Epochs over a round's dreams in which the dreamer learns."""

    learning_rate: float = Field(2e-4, gt=0)
    """Learning rate of the dreamer."""

    smallest_reward: float = 0.0
    """ReST-EM learns dreams that improved their task and whose rewards add up to more than this."""

    batch_size: int = Field(32, ge=1)
    """Maximum dreams per step of the dreamer on one device."""

    measure: str = "quiz"
    """What a dream has to improve. quiz: answers to questions the model writes itself. questions: answers to the
    memories' own questions, which can then no longer measure what was learned. heldout_loss: the loss on the text that
    a memory has under the key heldout, which the dreamer does not see. Or your own: package.module:function or
    path/to/file.py:function."""

    judge: JudgeSpec | None = None
    """Judge that scores the answers of quiz and questions: a name, or an object with name and params, such as
    {"name": "classifier", "params": {"model": "org/name"}}. Default: evaluation.metric scores them."""

    questions_per_task: int = Field(8, ge=1)
    """Candidate questions per task of the quiz. Those that get the same answer three times are kept."""

    test: Literal["sign", "bootstrap", "mcnemar"] = "bootstrap"
    """When a gain counts. bootstrap, mcnemar: paired tests. sign: its bare sign (the paper). Uncertain dreams
    abstain."""

    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence level of the test and of the intervals."""

    repeats: int = Field(1, ge=1)
    """How often a dream is tried out at most, in total, as long as its gain is uncertain. 1: never again."""

    lora_rank: int = Field(8, ge=1)
    """Rank of the LoRA adapters that try dreams out, one dream each, on shared base weights."""

    lora_alpha: float = Field(16.0, gt=0)
    """LoRA's alpha: adapters are scaled by alpha / rank."""

    lora_steps: int = Field(10, ge=1)
    """Optimizer steps in which an adapter learns its dream."""

    lora_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the adapters."""

    chunk: int | None = Field(None, ge=1)
    """Dreams tried out at a time, which bounds the memory used. Required with workers, which share the chunks. Default:
    all dreams of a round."""

    workers: int = Field(0, ge=0)
    """Ray tasks that try out chunks in parallel, each on one core or on gpus_per_worker; a cluster at
    rollout.ray_address runs as many as fit. 0: this process, one chunk after another. The results are the same."""

    gpus_per_worker: float = Field(0, ge=0, le=1)
    """GPUs per worker; a fraction lets several share one. 0: run on the CPU."""

    rewards: tuple[RewardSpec, ...] = Field((RewardSpec(name="improvement"),), min_length=1)
    """Rewards of dreams: improvement, quiz_gain, novelty, faithfulness, format, length, or your own."""

    into: Literal["expert", "lora"] = "expert"
    """What learns the rewarded dreams of the last round. expert: the new expert, by Knowledge Seeding. lora: an adapter
    for the grown model, in dream_adapter/, not merged; requires memory.routing dense."""

    steps: int = Field(50, ge=1)
    """Optimizer steps in which the rewarded dreams are learned."""

    share: float = Field(0.4, gt=0, lt=1)
    """Share of dreams in the rows of those steps; the rest is the night's data set, in its usual shares."""

    @field_validator("measure")
    @classmethod
    def _check_measure(cls, value: str) -> str:
        refuse_bare_file(value)
        if value not in MEASURES and not names_a_function(value):
            raise ValueError(
                f"{value!r} is not a measure; give one of {', '.join(MEASURES)}, or your own as "
                f"package.module:function or path/to/file.py:function"
            )
        return value

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        if self.judge is not None and self.measure not in ("quiz", "questions"):
            raise ValueError(
                f"judge scores answers to questions, but measure {self.measure} has none; leave it out, or give "
                f"measure quiz or questions"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.workers and self.chunk is None:
            raise ValueError(f"workers ({self.workers}) require chunk, the dreams tried out at a time; set it")
        return self

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        chosen = self.top_k + self.random_k
        if self.selection != "all" and not 0 < chosen <= self.dreams_per_task:
            raise ValueError(
                f"top_k ({self.top_k}) and random_k ({self.random_k}) select {chosen} of {self.dreams_per_task} dreams "
                f"per task; select at least 1 and at most dreams_per_task"
            )
        return self
