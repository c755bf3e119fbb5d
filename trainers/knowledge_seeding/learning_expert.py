"""The expert that Knowledge Seeding trains: what goes along with one, and that there is one."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from sleep_trl.memory import Memory, MemorySpec, attach

from .config import KnowledgeSeedingConfig


def check_that_experts_support(model: Any, args: KnowledgeSeedingConfig, kwargs: dict[str, Any]) -> None:
    if kwargs.get("peft_config") is not None or hasattr(model, "peft_config"):
        raise ValueError(
            "Knowledge Seeding trains an expert of the memory, which cannot be combined with an adapter. Leave "
            "peft_config out, or give a teacher_model to train the adapter instead of an expert."
        )
    if args.use_vllm:
        raise ValueError(
            "use_vllm=True: vLLM cannot load the expert that TRL would send it. Leave it out to generate with "
            "transformers, or run a night with --rollout.engine vllm (sleep-trl night), which starts a vLLM with "
            "room for the expert. With a teacher_model and a model without a memory, TRL's use_vllm remains possible."
        )


def ensure_learning_expert(model: PreTrainedModel, args: KnowledgeSeedingConfig) -> None:
    memory = Memory.of(model)
    if memory is None:
        memory = attach(model, MemorySpec(width=args.expert_width, max_experts=1, seed=args.seed))
        memory.activate()
    if memory.learning is None:
        raise ValueError("The model's memory has no learning expert. Call `memory.activate()` first.")
