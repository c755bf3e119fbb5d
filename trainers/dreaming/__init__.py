"""Dreaming: the trainer and its configuration."""

from .config import DreamingConfig
from .trainer import DreamingTrainer

__all__ = ["DreamingConfig", "DreamingTrainer"]
