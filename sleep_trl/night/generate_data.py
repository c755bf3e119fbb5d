"""The teacher's data set and the self-replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.samples import Window, WrittenSamples, write_about, write_earlier, write_general
from ..data.templates import Template
from ..distributed.progress import bar, echo
from ..planning.relearning import prompts_without
from ..rollout import Engine
from ..runs.files import read_jsonl
from .context import NightContext

HELD_OUT = 8  # general samples kept from training, on which agreement with the base is measured


class NothingUsable(ValueError):
    """The teacher wrote nothing about any memory of a night that could be learnt."""


def write_dataset(ctx: NightContext) -> dict[str, Any]:
    """Let the teacher write about the memories, and let it write the self-replay. No expert is learning yet.

    Raises:
        `NothingUsable`: if it wrote nothing about any memory that could be learnt.
    """
    config, data, seeds = (
        ctx.config,
        ctx.config.dataset,
        iter(range(ctx.config.seed + 1, ctx.config.seed + 1000, 2)),
    )
    windows = [
        Window(memory.id, memory.source, text)
        for memory, texts in zip(ctx.memories, ctx.inputs.windows, strict=True)
        for text in texts
    ]
    written = WrittenSamples()
    writers: Sequence[Engine] = ctx.teachers or [ctx.engine]
    shares = [data.samples_per_window * (k + 1) // len(writers) for k in range(len(writers))]  # up to each writer
    for template in map(Template.load, data.templates) if windows else ():
        with bar(
            f"Writing {template.name}", len(windows) * data.samples_per_window * (2 if template.ask else 1)
        ) as step:
            for writer, before, upto in zip(writers, [0, *shares], shares, strict=False):
                written += write_about(
                    windows,
                    template,
                    writer,
                    ctx.prompter,
                    samples_per_window=upto - before,
                    max_new_tokens=data.max_new_tokens,
                    ask_temperature=data.ask_temperature,
                    temperature=data.temperature,
                    seed=next(seeds),
                    keep_truncated=data.keep_truncated,
                    progress=step,
                )
    if data.general_share > 0 and data.general_samples:
        count = data.general_samples + HELD_OUT
        with bar("Writing general self-replay", count) as step:
            tokens = data.general_max_new_tokens
            texts = [text.text for text in ctx.inputs.general]
            with ctx.memory.as_base():  # which teaches them too
                written += write_general(ctx.engine, ctx.prompter, count, tokens, next(seeds), texts, step)
    if config.continue_from and (data.earlier_share > 0 or ctx.inputs.consolidations or ctx.relearning):
        gone = ctx.relearning.forgotten if ctx.relearning else ()
        prompts = prompts_without(read_jsonl(config.continue_from / "adapter" / "prompts.jsonl"), gone)
        with bar("Answering earlier prompts", len(prompts)) as step:
            options = (data.max_new_tokens, data.temperature, next(seeds), data.keep_truncated)
            written += write_earlier(prompts, ctx.engine, *options, step)
    counts = {part: sum(s.part == part for s in written.samples) for part in ("memory", "general", "earlier")}
    kept = ", ".join(f"{count} {part}" for part, count in counts.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(written.dropped.items())) or "none"
    echo(f"The teacher wrote {kept} samples; dropped: {dropped}")
    if counts["earlier"] == 0 and config.continue_from and data.earlier_share > 0:
        echo("[yellow]No prompt of an earlier night got a usable answer: what those nights taught is not replayed[/]")
    if windows and not counts["memory"]:
        raise NothingUsable(
            "The teacher wrote nothing usable about the memories. Look at the counts of dropped samples above: raise "
            "dataset.max_new_tokens if they were truncated, dataset.samples_per_window if there were few."
        )
    silent = sorted({memory.id for memory in ctx.memories} - {s.memory_id for s in written.samples})
    if silent:
        echo(f"[yellow]Nothing usable was written about {len(silent)} memories: {', '.join(silent[:5])}[/]")
    return {"counts": counts, "dropped": dict(written.dropped), "samples": [s.as_row() for s in written.samples]}
