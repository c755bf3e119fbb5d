"""Knowledge Seeding: turn samples into rows, and train the new expert on them."""

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
from ..runs.folder import RunFolder
from .context import NightContext
from .generate_data import HELD_OUT


class SeedExpert(Protocol):
    """Trains the active expert. The model is its own teacher unless `teachers` are given. Returns the trainer's log
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
    """Train the new expert on the samples and save its weights.

    Args:
        ctx (`NightContext`):
            The night.
        samples (`list[Sample]`):
            Samples of all parts. The general ones held out for measuring agreement are left out.
        seed_expert (`SeedExpert`):
            Trains the expert.
        steps (`int`, *optional*):
            Optimizer steps; `seeding.steps` by default.
        name (`str`, *optional*, defaults to `"seeded"`):
            Folder under `phases/` for the weights.
        is_own_teacher (`bool`, *optional*, defaults to `False`):
            Whether the model teaches itself even if other models teach the memories.

    Returns:
        `list[dict]`: the trainer's log history.
    """
    config, folder = ctx.config, RunFolder(ctx.config.output_dir)
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
    checkpoints = folder.path / ("checkpoints" if name == "seeded" else f"checkpoints-{name}")
    teachers = [] if is_own_teacher else [teacher.model for teacher in ctx.teachers]
    history = seed_expert(config, ctx.model, ctx.tokenizer, rows, checkpoints, ctx.engine, teachers)
    ctx.serve()
    if takes_part_in_saving(ctx.model):
        save_memory(ctx.memory, folder.phases / name)
    return history
