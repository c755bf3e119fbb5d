"""Evaluation: recall and base skill, before and after a night."""

from .metrics import contains, exact_match, f1, normalize_answer

__all__ = ["contains", "exact_match", "f1", "normalize_answer"]
