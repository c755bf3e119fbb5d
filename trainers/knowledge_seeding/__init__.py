"""Knowledge Seeding (arXiv 2606.03979, section 3.3)."""

from .config import KnowledgeSeedingConfig
from .trainer import KnowledgeSeedingTrainer

__all__ = ["KnowledgeSeedingConfig", "KnowledgeSeedingTrainer"]
