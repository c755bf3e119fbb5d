"""Engines that generate text."""

from .engine import Completion, Engine, Progress, Sampling, StopReason
from .in_process import TransformersEngine

__all__ = ["Completion", "Engine", "Progress", "Sampling", "StopReason", "TransformersEngine"]
