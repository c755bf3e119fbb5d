"""The trainers of sleep-trl: TRL trainers, usable alone."""

from .knowledge_seeding import KnowledgeSeedingConfig, KnowledgeSeedingTrainer

__all__ = ["KnowledgeSeedingConfig", "KnowledgeSeedingTrainer"]
