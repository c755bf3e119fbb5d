"""One run as one frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .dreaming import DreamConfig
from .memory_source import MemorySource
from .reward import RewardSpec
from .sections import (
    DatasetConfig,
    EvaluationConfig,
    LevelsConfig,
    MemoryConfig,
    RetentionConfig,
    RolloutConfig,
    Section,
    SeedingConfig,
)


class RunConfig(Section):
    """One night of a language model: memories in, a larger model that knows them out."""

    model: str = Field(min_length=1)
    """Model: a name on the Hugging Face hub or a folder. Safetensors only; no remote code is run."""

    teacher_model: tuple[str, ...] = ()
    """Another model with the same tokenizer, such as a smaller one, that reads and teaches the memories in the model's
    place; of several, the mean of their distributions teaches. Self-replay stays the model's own."""

    memories: str = Field(min_length=1)
    """Memories: a .jsonl file (text, optional id, source, questions), a folder of .txt and .md files, or the name or
    folder of a data set with a text column; wake:PATH, what is new in a wake buffer; or forget:ENTRY+ENTRY, to take
    entries back and learn anew what leans on them."""

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

    chat_template_kwargs: dict[str, Any] = Field({"enable_thinking": False})
    """Variables for the model's chat template, if it has one."""

    memory: MemoryConfig = MemoryConfig()
    """Size of the memory."""

    levels: LevelsConfig = LevelsConfig()
    """Levels of the memory, and what makes room in a full one."""

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

    retention: RetentionConfig = RetentionConfig()
    """What a night may cost."""

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
        replayed = self.dataset.general_share + self.dataset.earlier_share
        if self.dream.rounds and (taken := self.dream.share + replayed) >= 1:
            raise ValueError(
                f"dream.share ({self.dream.share}), dataset.general_share ({self.dataset.general_share}) and "
                f"dataset.earlier_share ({self.dataset.earlier_share}) add up to {taken:g} and leave no share for the "
                f"memory; their sum must be below 1"
            )
        return self

    @property
    def source(self) -> MemorySource:
        """What the night is about: `memories`, parsed."""
        return MemorySource.parse(self.memories)

    @property
    def starts_ray(self) -> bool:
        """Whether the run starts a Ray of its own."""
        return self.rollout.ray_address is None and (self.rollout.engine == "ray" or self.dream.workers > 0)
