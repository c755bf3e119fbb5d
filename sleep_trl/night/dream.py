"""The dreaming of a night: write tasks with a quiz, try dreams out, and learn those that helped."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from ..data.columns import add_columns
from ..data.samples import Sample
from ..data.windows import split_all
from ..distributed.progress import echo
from ..memory import load_experts, save_memory
from ..runs.folder import RunFolder
from ..runs.phases import Phases
from .context import NightContext
from .dream_adapter import learn_into_adapter
from .dream_tasks import Dreamer, as_samples, find_tasks, summarize, write_tasks
from .seed import SeedExpert, log_history, seed


def dream(
    ctx: NightContext, phases: Phases, samples: list[Sample], seed_expert: SeedExpert, dreamer: Dreamer
) -> tuple[dict[str, Any], list[Sample]]:
    """Dream about the night's memories, and let the new expert learn the dreams of the last round that helped.

    Returns:
        `tuple[dict, list[Sample]]`: counts of the dreams by round, and the dreams that helped.
    """
    config, folder = ctx.config, RunFolder(ctx.config.output_dir)
    rows = phases.once("write_quiz", lambda: write_quiz(ctx))
    if len(rows) < PartialState().num_processes:
        echo(f"No window can be measured by {config.dream.measure}, so there is no dreaming", style="yellow")
        return summarize([], 0), []

    add_columns(rows, ctx.memories, ctx.inputs.columns.names)

    def try_out() -> list[dict[str, Any]]:
        records = dreamer(config, ctx.model, ctx.tokenizer, rows, samples, folder.checkpoints_of("dreamt"))
        if PartialState().is_main_process:
            save_memory(ctx.memory, folder.phases / "dreamt")
        return records

    records = phases.once("dream", try_out)
    dreams = as_samples(config, rows, records, ctx.prompter)
    if not dreams:
        echo("No dream of the last round improved its task: keeping the expert as it was seeded")
    if not dreams or config.dream.into == "lora":
        load_experts(ctx.memory, folder.seeded)
        return summarize(records, len(dreams)), dreams
    echo(f"Learning {len(dreams)} dreams that improved their tasks")
    load_experts(ctx.memory, folder.phases / "dreamt")
    learned = phases.once(
        "learn_dreams", lambda: seed(ctx, samples + dreams, seed_expert, config.dream.steps, "learnt")
    )
    load_experts(ctx.memory, folder.phases / "learnt")
    return {**summarize(records, len(dreams)), "history": log_history(learned)}, dreams


def adapt_to_dreams(ctx: NightContext, dreams: list[Sample]) -> str | None:
    """Train an adapter for the grown model on the dreams, and return its folder."""
    if not PartialState().is_main_process:
        return None
    echo(f"Learning {len(dreams)} dreams that improved their tasks, into an adapter")
    return str(learn_into_adapter(ctx.config, ctx.tokenizer, dreams, ctx.model.device))


def write_quiz(ctx: NightContext) -> list[dict[str, Any]]:
    """Write the tasks of dreaming: a row for each window of the memories, with questions about it."""
    config, prompter = ctx.config, ctx.prompter
    windows = ctx.inputs.reading
    if size := config.dream.window:
        texts = [memory.text for memory in ctx.memories]
        windows = ctx.inputs.under_titles(ctx.memories, split_all(texts, prompter.count_all, size, 0))
    with ctx.memory.as_teacher():
        return write_tasks(config, find_tasks(ctx.memories, windows), ctx.engine, prompter, config.seed + 1001)
