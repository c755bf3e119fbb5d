"""Sections about a chain of nights: its levels, and what a night may cost."""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .schedule import Schedule
from .sections import Section


class LevelsConfig(Section):
    """Levels of the memory: when the experts of a level are consolidated into one expert, and what a full memory
    does."""

    chunks: tuple[int, ...] = ()
    """Chunk sizes: tokens of wake input after which a level is consolidated into the next, starting with the context
    (level 0), such as 1000,5000,10000. Each must divide the next. Level 0's divides a wake buffer, or memories with
    nights auto, into nights: each ends with the document that fills the chunk. Default: nights learn into level 1 and
    nothing is consolidated."""

    when_full: Literal["stop", "promote", "merge"] = "stop"
    """What to do when a night would take the last free expert. stop: take it, and refuse the next night. promote:
    consolidate the fastest level that has two or more experts into one expert of the next level. merge: consolidate the
    two least used experts of the fullest level into one of that level."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps per consolidation. Default: seeding.passes over the samples that are relearned; if seeding.steps
    is given, that many for each expert that is consolidated, since the new one has to learn what all of them did."""

    learning_rate: float = Field(0.0, ge=0)
    """Step size of a level's update at the end of its chunk, along the gradients accumulated since the last one (Eq.
    2). Above 0, every level has a block for this, which takes one of memory.max_experts. 0: no update."""

    @field_validator("when_full", mode="before")
    @classmethod
    def _accept_former_name(cls, value: Any) -> Any:
        if value == "onward":
            warnings.warn(
                "levels.when_full: 'onward' is now 'promote'; the old name will be removed in 0.3.", FutureWarning, 2
            )
            return "promote"
        return value

    @model_validator(mode="after")
    def _check_chunks(self) -> Self:
        if self.chunks:
            Schedule(self.chunks)
        elif self.learning_rate:
            raise ValueError(
                f"learning_rate ({self.learning_rate:g}) requires chunks, at whose ends it is applied; give "
                f"--levels.chunks, such as 1000,5000,10000"
            )
        return self


class RetentionConfig(Section):
    """What a night may cost. A night that costs more is rolled back: its expert is reset and its records stay
    queued."""

    max_forgetting: float | None = Field(None, ge=0, le=1)
    """Maximum relative drop in the mean recall of earlier nights: 0.05 allows a drop from 80 to 76 %. Default: no
    limit."""

    max_skill_loss: float | None = Field(None, ge=0, le=1)
    """Maximum relative loss of base skill. 0.01 allows the share of answered reading questions to fall by 1 % of its
    value before the night, and the perplexity to rise by 1 % of its value; more of either is too much. If neither is
    measured, it is the agreement with the base model that may fall. Default: no limit."""
