"""One run as one frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .chain import LevelsConfig, RetentionConfig
from .dreaming import DreamConfig
from .memory_source import MemorySource
from .model_name import MAIN
from .reward import RewardSpec
from .sections import (
    DatasetConfig,
    EvaluationConfig,
    MemoryConfig,
    RolloutConfig,
    Section,
    SeedingConfig,
)

AUTO = ("auto",)
"""`nights` that are as many as it takes."""


class RunConfig(Section):
    """One night of a language model: takes memories, returns a larger model that knows them."""

    model: str = Field(min_length=1)
    """Base model: a name on the Hugging Face Hub, a folder, or a GGUF file (FOLDER/NAME.gguf), which is converted once
    into a cache. Safetensors or GGUF only; remote code is never run."""

    gguf_file: str | None = None
    """Name of a GGUF file in the folder or Hub repository that `model` names."""

    model_revision: str = Field(MAIN, min_length=1)
    """Branch, tag or commit of the model on the Hugging Face Hub."""

    attn_implementation: str | None = None
    """Implementation of attention, such as sdpa, eager or flash_attention_2. Default: what transformers chooses."""

    teacher_model: tuple[str, ...] = ()
    """Model or models with the same tokenizer that teach the memories in place of the base model. Several teach with
    the mean of their distributions. Self-replay still comes from the base model. Of each, the main revision is used."""

    memories: str = Field(min_length=1)
    """What to learn: a .jsonl file (text or messages, optional id, source, questions), a document (.txt, .md; with the
    extra `documents` also .pdf, .html and .docx), a folder of documents, or the name or folder of a data set with a
    column text or messages; wake:PATH for the new records of a wake buffer; or forget:ENTRY+ENTRY to remove ledger
    entries and relearn the entries that depend on them."""

    strict: bool = False
    """Stop if a file or a row of the memories cannot be read. Otherwise it is left out, and plan, table, results and
    report say so."""

    dataset_config: str | None = None
    """Configuration of a data set that memories names."""

    dataset_train_split: str | None = None
    """Split of that data set. Default: train, or the only one."""

    dataset_columns: dict[str, str] = Field({})
    """Its columns by what they are of a memory, text or messages, id, source or questions: {"text": "article"}."""

    output_dir: Path = Path("runs/night")
    """Folder of the run: results.json, report.html, ledger.jsonl, adapter/ and, with memory.routing dense, model/."""

    nights: tuple[str, ...] = ()
    """Memories of several nights, instead of memories: one item per night, in the same form. Each night continues the
    one before, in output_dir/night-001 and so on; finished nights are skipped. auto: as many nights as it takes to
    learn all memories, each of seeding.steps or until the chunk of level 0 (levels.chunks) is full."""

    continue_from: Path | None = None
    """Folder of an earlier run to build on: its experts are kept, its prompts replayed, its recall measured again."""

    resume: bool = False
    """Resume the interrupted run in output_dir."""

    dry_run: bool = False
    """Check everything, print the plan (parameters, memory, steps) and stop."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Random seed."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the frozen base. auto: bfloat16 if the GPU supports it, or if a short measurement finds the CPU at least
    1.25 times as fast with it; otherwise float32. A run that continues or resumes another keeps its dtype. Experts are
    always float32."""

    max_context: int | None = Field(None, ge=32)
    """Context length to use, prompt and answer together, in tokens. Default: the model's limit."""

    chat_template_kwargs: dict[str, Any] = Field({"enable_thinking": False})
    """Variables for the model's chat template, if it has one."""

    memory: MemoryConfig = MemoryConfig()
    """Size of the memory."""

    levels: LevelsConfig = LevelsConfig()
    """Levels of the memory, and what a full memory does."""

    dataset: DatasetConfig = DatasetConfig()
    """The teacher's data set and self-replay."""

    seeding: SeedingConfig = SeedingConfig()
    """Knowledge Seeding."""

    dream: DreamConfig = DreamConfig()
    """Dreaming."""

    rewards: tuple[RewardSpec, ...] = Field((RewardSpec(name="imitation"),), min_length=1)
    """Rewards of Knowledge Seeding: registered names, package.module:function, file.py:function, reward models
    (org/name or ./folder), or objects with name, weight, params, timeout_s and on_error."""

    rollout: RolloutConfig = RolloutConfig()
    """The engine that generates."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation before and after."""

    retention: RetentionConfig = RetentionConfig()
    """What a night may cost."""

    report: bool = True
    """Write report.html, which requires the extra `report`. By default it is left out where that is not installed."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_gguf_file(cls, values: Any) -> Any:
        """Make `model` and `gguf_file` one name, so that everything below reads `model` alone."""
        if not isinstance(values, dict) or not values.get("gguf_file") or not values.get("model"):
            return values
        return {**values, "model": f"{str(values['model']).rstrip('/')}/{values['gguf_file']}", "gguf_file": None}

    @field_validator("teacher_model", mode="before")
    @classmethod
    def _accept_single_teacher(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _take_memories_from_nights(cls, values: Any) -> Any:
        nights = values.get("nights") if isinstance(values, dict) else None
        if not nights or not isinstance(nights, list | tuple) or tuple(nights) == AUTO:
            return values
        if (memories := values.get("memories", nights[0])) != nights[0]:
            raise ValueError(
                f"nights begins with {nights[0]}, but memories is {memories}. Give either memories for one night or "
                f"nights for several"
            )
        return {**values, "memories": nights[0]}

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, value: Path) -> Path:
        if value.is_file():
            raise ValueError(f"{value} is a file; give a folder that exists or can be created")
        return value

    @model_validator(mode="after")
    def _check_nights(self) -> Self:
        if self.nights == AUTO and self.seeding.steps is None and not self.levels.chunks:
            raise ValueError(
                "nights auto divides memories by the steps of a night or by the chunk of level 0; give --seeding.steps "
                "or --levels.chunks. Without them one night is as long as what there is to learn"
            )
        return self

    @model_validator(mode="after")
    def _check_continue_from(self) -> Self:
        here = self.output_dir.absolute()
        if self.continue_from is not None and self.continue_from.absolute() == here:
            raise ValueError(
                f"continue_from and output_dir are the same folder ({self.output_dir}); give a new output_dir, or "
                f"--resume to resume an interrupted run"
            )
        return self

    @model_validator(mode="after")
    def _check_dream(self) -> Self:
        if self.dream.random_expert and self.continue_from is None and self.memory.routing == "dense":
            raise ValueError(
                "dream.random_expert requires memory.routing topk: with dense every expert takes part already"
            )
        if self.dream.into == "lora" and self.memory.routing == "topk":
            raise ValueError(
                "dream.into lora requires memory.routing dense: with topk there is no grown checkpoint for an adapter"
            )
        replayed = self.dataset.general_share + self.dataset.earlier_share
        if self.dream.rounds and (taken := self.dream.share + replayed) >= 1:
            raise ValueError(
                f"dream.share ({self.dream.share}), dataset.general_share ({self.dataset.general_share}) and "
                f"dataset.earlier_share ({self.dataset.earlier_share}) add up to {taken:g} and leave no share for the "
                f"memories; their sum must be below 1"
            )
        return self

    @property
    def source(self) -> MemorySource:
        """What the night is about: `memories`, parsed."""
        return MemorySource.parse(self.memories)

    @property
    def starts_ray(self) -> bool:
        """Whether the run starts its own Ray."""
        return self.rollout.ray_address is None and (self.rollout.engine == "ray" or self.dream.workers > 0)
