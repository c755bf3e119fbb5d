"""The data set of a night: the teacher's samples about the memories, and self-replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..data.samples import Window, WrittenSamples, write_about, write_earlier, write_general
from ..data.templates import Template
from ..distributed.progress import bar, echo
from ..planning.relearning import prompts_without
from ..rollout import Engine
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from .context import NightContext

HELD_OUT = 8  # general samples held out from training, to measure agreement with the base


class NothingUsable(ValueError):
    """The teacher wrote nothing usable about any memory of a night."""


def write_dataset(ctx: NightContext) -> dict[str, Any]:
    """Let the teacher write about the memories, and the model write the self-replay. No expert is active yet.

    Returns:
        `dict`: `counts` of samples by part, `dropped` completions by reason, and the `samples` as rows.

    Raises:
        `NothingUsable`: if nothing usable was written about any memory.
    """
    config, data = ctx.config, ctx.config.dataset
    seeds = iter(range(config.seed + 1, config.seed + 1000, 2))
    windows = _windows(ctx)
    written = _about_memories(ctx, windows, seeds) if windows else WrittenSamples()
    written += _general(ctx, seeds) + _earlier(ctx, seeds)
    counts = {part: sum(s.part == part for s in written.samples) for part in ("memory", "general", "earlier")}
    kept = ", ".join(f"{count} {part}" for part, count in counts.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(written.dropped.items())) or "none"
    echo(f"Samples: {kept}; dropped: {dropped}")
    if counts["earlier"] == 0 and config.continue_from and data.earlier_share > 0:
        echo("[yellow]No prompt of an earlier night got a usable answer, so earlier nights are not replayed[/]")
    if windows and not counts["memory"]:
        raise NothingUsable(
            "The teacher wrote nothing usable about the memories. See the counts of dropped samples above: raise "
            "dataset.max_new_tokens if they were truncated, dataset.samples_per_window if there were few."
        )
    if unused := sorted({memory.id for memory in ctx.memories} - {s.memory_id for s in written.samples}):
        echo(f"[yellow]Nothing usable was written about {len(unused)} memories: {', '.join(unused[:5])}[/]")
    return {"counts": counts, "dropped": dict(written.dropped), "samples": [s.as_row() for s in written.samples]}


def _windows(ctx: NightContext) -> list[Window]:
    return [
        Window(memory.id, memory.source, text)
        for memory, texts in zip(ctx.memories, ctx.inputs.windows, strict=True)
        for text in texts
    ]


def _about_memories(ctx: NightContext, windows: Sequence[Window], seeds: Iterator[int]) -> WrittenSamples:
    """Let the teachers write about each window by each template; several teachers share the samples of a window."""
    data, written = ctx.config.dataset, WrittenSamples()
    writers: Sequence[Engine] = ctx.teachers or [ctx.engine]
    ends = [data.samples_per_window * (k + 1) // len(writers) for k in range(len(writers))]
    for template in map(Template.load, data.templates):
        generations = len(windows) * data.samples_per_window * (2 if template.ask else 1)
        with bar(f"Writing {template.name}", generations) as progress:
            for writer, start, end in zip(writers, [0, *ends], ends, strict=False):
                written += write_about(
                    windows,
                    template,
                    writer,
                    ctx.prompter,
                    samples_per_window=end - start,
                    max_new_tokens=data.max_new_tokens,
                    ask_temperature=data.ask_temperature,
                    temperature=data.temperature,
                    seed=next(seeds),
                    keep_truncated=data.keep_truncated,
                    progress=progress,
                )
    return written


def _general(ctx: NightContext, seeds: Iterator[int]) -> WrittenSamples:
    """Let the pretrained model write general samples; it also teaches them."""
    data = ctx.config.dataset
    if not (data.general_share > 0 and data.general_samples):
        return WrittenSamples()
    count, tokens = data.general_samples + HELD_OUT, data.general_max_new_tokens
    texts = [memory.text for memory in ctx.inputs.general]
    with bar("Writing general self-replay", count) as progress, ctx.memory.as_base():
        return write_general(ctx.engine, ctx.prompter, count, tokens, next(seeds), texts, progress)


def _earlier(ctx: NightContext, seeds: Iterator[int]) -> WrittenSamples:
    """Let the model answer the prompts of earlier nights, if they are replayed or consolidated."""
    config, data = ctx.config, ctx.config.dataset
    is_needed = data.earlier_share > 0 or ctx.inputs.consolidations or ctx.relearning
    if not (config.continue_from and is_needed):
        return WrittenSamples()
    forgotten = ctx.relearning.forgotten if ctx.relearning else ()
    prompts = prompts_without(read_jsonl(RunFolder(config.continue_from).adapter.prompts), forgotten)
    with bar("Answering earlier prompts", len(prompts)) as progress:
        options = (data.max_new_tokens, data.temperature, next(seeds), data.keep_truncated)
        return write_earlier(prompts, ctx.engine, *options, progress)
