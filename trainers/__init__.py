"""The trainers of sleep-trl: TRL trainers, usable alone."""

from .dreaming import DreamingConfig, DreamingTrainer
from .knowledge_seeding import KnowledgeSeedingConfig, KnowledgeSeedingTrainer

__all__ = ["DreamingConfig", "DreamingTrainer", "KnowledgeSeedingConfig", "KnowledgeSeedingTrainer"]
