"""Knowledge Seeding: rows made of samples, learnt by the new expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig
from ..data.rows import build_rows
from ..data.samples import Sample
from ..distributed.zero3 import takes_part_in_saving
from ..memory import save_memory
from ..rollout import Engine
from .context import NightContext
from .generate_data import HELD_OUT


class SeedExpert(Protocol):
    """Trains the expert that is learning; `teachers`, if any, teach in the model's place. Returns the trainer's log
    history."""

    def __call__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[dict[str, Any]],
        folder: Path,
        engine: Engine,
        teachers: Sequence[PreTrainedModel] = (),
    ) -> list[dict[str, Any]]: ...


def seed(
    ctx: NightContext,
    samples: list[Sample],
    seed_expert: SeedExpert,
    steps: int | None = None,
    name: str = "seeded",
    is_own_teacher: bool = False,
) -> list[dict[str, Any]]:
    """Train the new expert on rows made of the samples, and keep its weights under a name. `is_own_teacher`: also where
    other models teach the memories, since what is learnt is the model's own."""
    config, folder = ctx.config, ctx.config.output_dir
    config = config.model_copy(
        update={"seeding": config.seeding.model_copy(update={"steps": steps or config.seeding.steps})}
    )
    general = [s for s in samples if s.part == "general"]
    rows = build_rows(
        [s for s in samples if s.part != "general"] + general[HELD_OUT:],
        ctx.tokenizer,
        steps=config.seeding.steps,
        per_step=config.seeding.prompts_per_step,
        shares={
            "dream": config.dream.share,
            "general": config.dataset.general_share,
            "earlier": config.dataset.earlier_share,
        },
        prefix_share=config.dataset.prefix_share,
        max_completion=config.seeding.max_completion_length,
        seed=config.seed,
    )
    checkpoints = folder / ("checkpoints" if name == "seeded" else f"checkpoints-{name}")
    teachers = [] if is_own_teacher else [teacher.model for teacher in ctx.teachers]
    history = seed_expert(config, ctx.model, ctx.tokenizer, rows, checkpoints, ctx.engine, teachers)
    ctx.serve()
    if takes_part_in_saving(ctx.model):
        save_memory(ctx.memory, folder / "phases" / name)
    return history
