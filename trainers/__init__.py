"""The trainers of sleep-trl: TRL trainers, usable alone."""

from ..distributed.zero3 import expect_no_gpu

expect_no_gpu()  # before TRL imports DeepSpeed, which prints a warning otherwise

from .dreaming import DreamingConfig, DreamingTrainer  # noqa: E402
from .knowledge_seeding import KnowledgeSeedingConfig, KnowledgeSeedingTrainer  # noqa: E402

__all__ = ["DreamingConfig", "DreamingTrainer", "KnowledgeSeedingConfig", "KnowledgeSeedingTrainer"]
