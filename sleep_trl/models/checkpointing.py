"""Activation checkpointing of a model, by whichever name transformers has for it: it was gradient checkpointing."""

from __future__ import annotations

from transformers import PreTrainedModel


def is_checkpointing(model: PreTrainedModel) -> bool:
    """Return whether a model computes activations again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def stop_checkpointing(model: PreTrainedModel) -> None:
    """Let a model keep its activations for the backward pass."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()
