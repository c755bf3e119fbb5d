"""`sleep-trl plan`: what a night needs on GPUs that need not be here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .output import as_line, at_least, redirect_to_stderr

if TYPE_CHECKING:
    from ..planning.gpus import GPU
    from ..planning.scale import Corpus, Scale


def plan(
    context: typer.Context,
    gpus: Annotated[str, typer.Option(metavar="NxGPU", help="Such as 8xH100, H200 or 2xA100-80GB.")],
    documents: Annotated[int, typer.Option(min=1, help="Documents to learn.")] = 200,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 5000,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate a night on named GPUs: memory by phase, what travels, and seconds of a step.

    Takes the options of `sleep-trl night`, of which only --model is needed, and reads only the model's config.json.
    Memory is the estimate of every plan, with these lengths in place of a run's texts. Seconds follow from the
    makers' figures and have not been measured; they are lower bounds, far too low for small models, because kernel
    launches and Python's overhead are not counted. Exit code 2: a phase takes more memory than a GPU has.
    """
    with redirect_to_stderr():
        from ..config.command_line import explain, parse
        from ..planning.gpus import parse_gpus
        from ..planning.scale import Corpus, check_fits, plan_scale

        count, gpu = parse_gpus(gpus)
        corpus = Corpus(documents, tokens)
        try:
            config = parse([*_UNREAD, *context.args])
        except ValueError as error:
            raise ValueError(explain(error)) from None
        scale = plan_scale(config, count, gpu, corpus)
    if json:
        typer.echo(as_line({"gpus": gpus, **asdict(scale), "phases": scale.phases, "too_large": scale.too_large}))
    else:
        _print(config.model, count, gpu, corpus, scale)
    check_fits(scale, gpu)


_UNREAD = ("--memories=unread", "--output_dir=unread")


def _print(model: str, count: int, gpu: GPU, corpus: Corpus, scale: Scale) -> None:
    from ..planning.gpus import GB
    from ..planning.scale import OF_BANDWIDTH, OF_FLOPS

    shown = [f"{name} {size / GB:,.1f}" for name, size in scale.peak.held.items() if size >= GB / 20]
    held = ", ".join(shown) or "less than 0.05"
    reserved = f", vLLM {scale.reserved / GB:,.1f}" if scale.reserved else ""
    update = f"{scale.update / GB:,.3f} GB an engine, {scale.update_share:.1%} of the model"
    lines = {
        "model": f"{model}, {corpus.documents:,} documents of {corpus.tokens:,} tokens",
        "launch": f"{scale.launch} on {count} x {gpu.name}, text by {scale.engine}"
        + (", which gathers the model for rollouts" if scale.gathers else ""),
        "held throughout, GB": held + reserved,
        **{f"  and {name}": f"{size / GB:,.1f} of {scale.capacity / GB:,.1f}" for name, size in scale.phases.items()},
        "weights update": update if scale.update else "none: the model itself generates",
        "gathered in a step": f"{scale.gathered / GB:,.1f} GB a GPU" if scale.gathered else "nothing",
        "a step": f"{at_least(scale.seconds)}, with rollouts {at_least(scale.rollout_seconds)}",
        "training": f"{scale.steps:,} steps, {at_least(scale.night_seconds)}",
        "not counted": "kernel launches, Python's overhead, dreaming, the seconds of writing and evaluation, models of "
        "rewards",
        "assumed": f"{OF_FLOPS:.0%} of {gpu.flops / 1e12:,.0f} TFLOP/s; {OF_BANDWIDTH:.0%} of "
        f"{gpu.bandwidth / 1e12:,.2f} TB/s, and of {gpu.link / GB:,.0f} GB/s between GPUs",
        "figures by": gpu.source,
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{name.ljust(width)}  {value}")
