"""Engines that generate text."""

from .engine import Completion, Engine, Progress, Sampling, StopReason
from .in_process import TransformersEngine, plain_generation

__all__ = ["Completion", "Engine", "Progress", "Sampling", "StopReason", "TransformersEngine", "plain_generation"]
