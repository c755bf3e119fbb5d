"""The part of a run's configuration that is about dreams."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .reward import RewardSpec
from .sections import Section


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

    chunk: int | None = Field(None, ge=1)
    """Dreams tried out at a time, which bounds the memory. Default: all of a round. Needed by workers, who share
    chunks."""

    workers: int = Field(0, ge=0)
    """Ray tasks that try chunks out at the same time, each on one core or on gpus_per_worker; a cluster at
    rollout.ray_address runs as many as fit it. 0: the process that dreams, chunk after chunk. The results are the
    same."""

    gpus_per_worker: float = Field(0, ge=0, le=1)
    """GPUs of such a task; a fraction lets several share one. 0: on the CPU."""

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
    def _has_chunks_to_share(self) -> Self:
        if self.workers and self.chunk is None:
            raise ValueError(f"workers ({self.workers}) need chunks to share; set chunk, the dreams in each")
        return self

    @model_validator(mode="after")
    def _selects_some(self) -> Self:
        chosen = self.top_k + self.random_k
        if self.selection != "all" and not 0 < chosen <= self.dreams_per_task:
            raise ValueError(
                f"top_k ({self.top_k}) and random_k ({self.random_k}) select {chosen} of {self.dreams_per_task} dreams "
                f"of a task; select at least 1 and at most dreams_per_task"
            )
        return self
