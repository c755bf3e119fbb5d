"""Knowledge Seeding: turn samples into rows, and train the new expert on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import RunConfig, first_rollout_step
from ..config.counting import counted
from ..data.columns import add_columns
from ..data.rows import build_rows, shares_of, steps_of
from ..data.samples import HELD_OUT, Sample
from ..distributed.progress import echo
from ..distributed.zero3 import takes_part_in_saving
from ..memory import save_memory
from ..rollout import Engine
from ..runs.folder import RunFolder
from .context import NightContext


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


def lay_out(
    samples: Sequence[Sample],
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    steps: int | None = None,
    **options: Any,
) -> tuple[RunConfig, list[dict[str, Any]]]:
    """Lay out the rows of a training on samples of all parts, but for the general ones held out to measure agreement.

    Returns:
        `tuple[RunConfig, list[dict]]`: the configuration with the number of steps and with `options` of `seeding`, and
        the rows, in training order.
    """
    general = [s for s in samples if s.part == "general"]
    samples = [s for s in samples if s.part != "general"] + general[HELD_OUT:]
    options = {"steps": steps or steps_of(samples, config), **options}
    config = config.model_copy(update={"seeding": config.seeding.model_copy(update=options)})
    seeding = config.seeding
    rows = build_rows(
        samples,
        tokenizer,
        steps=options["steps"],
        per_step=seeding.prompts_per_step,
        shares=shares_of(config),
        prefix_share=config.dataset.prefix_share,
        first_rollout=first_rollout_step(seeding.alpha, seeding.lmbda, seeding.rollout_start, options["steps"]),
        max_completion=seeding.max_completion_length,
        seed=config.seed,
    )
    return config, rows


def seed(
    ctx: NightContext,
    samples: list[Sample],
    seed_expert: SeedExpert,
    steps: int | None = None,
    name: str = "seeded",
    is_own_teacher: bool = False,
) -> dict[str, Any]:
    """Train the new expert on the samples and save its weights.

    Args:
        ctx (`NightContext`):
            The night.
        samples (`list[Sample]`):
            Samples of all parts. The general ones held out for measuring agreement are left out.
        seed_expert (`SeedExpert`):
            Trains the expert.
        steps (`int`, *optional*):
            Optimizer steps; by default `seeding.steps`, or what `seeding.passes` over the samples comes to.
        name (`str`, *optional*, defaults to `"seeded"`):
            Folder under `phases/` for the weights.
        is_own_teacher (`bool`, *optional*, defaults to `False`):
            Whether the model teaches itself even if other models teach the memories, by its distribution alone.

    Returns:
        `dict`: the trainer's log `history`, the `steps`, and the ids of the memories that were `trained` on.
    """
    config, folder = ctx.config, RunFolder(ctx.config.output_dir)
    # Experts that are consolidated say what is to be learned: no sample is truer than their distribution.
    options = {"sft_weight": 0.0} if is_own_teacher else {}
    config, rows = lay_out(samples, config, ctx.tokenizer, steps, **options)
    steps = len(rows) // config.seeding.prompts_per_step
    extra = ctx.inputs.columns
    add_columns(rows, ctx.memories, extra.names)
    for column, reason in extra.left_out.items():
        echo(f"Rewards do not get the column {column} of the memories: {reason}", style="yellow")
    checkpoints = folder.checkpoints if name == "seeded" else folder.checkpoints_of(name)
    teachers = [] if is_own_teacher else [teacher.model for teacher in ctx.teachers]
    trained = {row["memory_id"] for row in rows if row["part"] == "memory"}
    about = f"{counted(len(rows), 'row')} about {counted(len(trained), 'memory')} and self-replay"
    echo(f"Training for {counted(steps, 'step')}, on {about}")
    history = seed_expert(config, ctx.model, ctx.tokenizer, rows, checkpoints, ctx.engine, teachers)
    ctx.serve()
    if takes_part_in_saving(ctx.model):
        save_memory(ctx.memory, folder.phases / name)
    return {"history": history, "steps": steps, "trained": sorted(trained)}


def log_history(seeded: Any) -> list[dict[str, Any]]:
    """Return the trainer's log history from the result of [`seed`], which was nothing else in 0.1."""
    history: list[dict[str, Any]] = seeded if isinstance(seeded, list) else seeded["history"]
    return history


def trained_ids(seeded: Any, samples: Sequence[Sample]) -> set[str]:
    """Return the memories that were trained on, from the result of [`seed`]. For a night that 0.1 seeded, those with
    samples, as 0.1 did."""
    written = {sample.memory_id for sample in samples if sample.part == "memory"}
    return written if isinstance(seeded, list) else written.intersection(seeded["trained"])
