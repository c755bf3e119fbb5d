"""One run as one frozen model: YAML in, dotted overrides on top, validated once. Imports no torch."""

from .chain import LevelsConfig, RetentionConfig
from .dreaming import DreamConfig
from .memory_source import MemorySource
from .run import RunConfig
from .sections import (
    DatasetConfig,
    EvaluationConfig,
    MemoryConfig,
    RolloutConfig,
    SeedingConfig,
    first_rollout_step,
)

__all__ = [
    "DatasetConfig",
    "DreamConfig",
    "EvaluationConfig",
    "LevelsConfig",
    "MemoryConfig",
    "MemorySource",
    "RetentionConfig",
    "RolloutConfig",
    "RunConfig",
    "SeedingConfig",
    "first_rollout_step",
]
