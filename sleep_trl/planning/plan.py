"""A night in numbers, before it starts. All of it is arithmetic on shapes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from ..config.counting import counted
from ..data.sources import shown
from .peak_memory import Peak
from .shape import FLOAT32, MIB, Shape

NOT_CONVERTED = "not converted yet: the night does that first, and then checks that it predicts plain English"
ESTIMATED = "tokens, windows, samples and what follows from them, from {:.1%} of the text; the night counts all of it"


@dataclass(frozen=True)
class Plan:
    """A night that was checked and has not begun.

    Parameter counts are numbers of values; sizes on disk are in bytes, and so is `peak`, the memory of a process.
    `samples` is the maximum that the teacher writes, `rows` are training prompts; `context`, `window` and
    `memory_tokens` are in tokens. `dtype` is that of the frozen base, `dtype_reason` says why. `queued` counts the
    memories that do not fit the night for its `limit`, `nights_after` the nights that learn them, an estimate if
    `is_queue_estimated`. If `passes` is not `None`, `steps`, `rows` and `rollouts` follow from it and are estimates:
    the most, if all samples are usable. `share` is the share of the text that was counted: if it is less than 1,
    tokens, windows, samples and what follows from them are estimates. `top_k` is `None` if every expert takes part in
    every token. `consolidations` describes which experts are consolidated before the night learns anything. `left_out`
    says which files, rows and folders are not read, `warnings` what should be known before the night.
    """

    model: str
    architecture: str
    dtype: str
    dtype_reason: str
    layers: int
    hidden_size: int
    context: int
    base_parameters: int
    added_parameters: int
    width: int
    experts: int
    max_experts: int
    top_k: int | None
    consolidations: tuple[str, ...]
    output_dir: str
    memories: int
    queued: int
    nights_after: int
    is_queue_estimated: bool
    limit: str
    left_out: tuple[str, ...]
    memory_tokens: int
    questions: int
    window: int
    windows: int
    samples: int
    share: float
    passes: float | None
    rows: int
    steps: int
    rollouts: int
    learning_rate: float
    peak: Peak
    adapter_bytes: int
    disk_bytes: int
    is_converted: bool
    warnings: tuple[str, ...]

    @property
    def peak_memory_mib(self) -> float:
        """Peak memory of a process in MiB; an estimate, not a bound."""
        return self.peak.total / MIB

    @property
    def about(self) -> str:
        """What stands before numbers that are estimated from a part of the text."""
        return "" if self.share == 1 else "about "

    @property
    def trainable_share(self) -> float:
        """Fraction of the grown model's parameters that this night trains, in [0, 1]."""
        return self.added_parameters / (self.base_parameters + self.experts * self.added_parameters)


def estimate_disk(shape: Shape, width: int, experts: int) -> tuple[int, int]:
    """Estimate the size of `adapter/` and of everything a night writes, in bytes.

    That is the grown model (unless it is routed), the adapter, the seeded expert, and two checkpoints of the expert
    with its two Adam moments.
    """
    expert = shape.expert_parameters(width)
    adapter = experts * expert * FLOAT32
    model = 0 if shape.is_routed else (shape.parameters + experts * expert) * shape.bytes_per_weight
    return adapter, model + 2 * adapter + 2 * 3 * expert * FLOAT32


def render(plan: Plan) -> Table:
    """Return the plan as a table of two columns."""
    table = Table(title="The night, as planned", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column()
    share = f"{plan.trainable_share:.2%} of the grown model"
    memories = f"{plan.memories:,}"
    if plan.queued:
        about = "about " if plan.is_queue_estimated else ""
        more = f"{about}{counted(plan.nights_after, 'more night')} of this length (--nights auto)"
        memories = f"{describe_fit(plan.memories, plan.queued, plan.limit)}, for {more}"
    steps = counted(plan.steps, "step")
    if plan.passes is not None:
        steps = f"about {steps} ({plan.passes:g} {'pass' if plan.passes == 1 else 'passes'})"
    routing = "all" if plan.top_k is None else f"{plan.top_k} chosen by a router, plus the one that learns"
    for name, value in {
        "model": f"{plan.model} ({plan.architecture}, {plan.layers} layers of {plan.hidden_size})"
        + ("" if plan.is_converted else f"; {NOT_CONVERTED}"),
        "base parameters": f"{plan.base_parameters:,} in {plan.dtype}, frozen",
        "dtype": f"{plan.dtype}: {plan.dtype_reason}",
        "parameters added": f"{plan.added_parameters:,}, trainable: {share}",
        "expert": f"number {plan.experts} of {plan.max_experts}, width {plan.width}",
        "experts per token": routing,
        "levels": "; ".join(plan.consolidations) or "nothing is due",
        "memories": f"{memories}, {plan.about}{counted(plan.memory_tokens, 'token')}, "
        + counted(plan.questions, "question"),
        "not read": shown(list(plan.left_out)).strip() or "nothing is left out",
        "windows": f"{plan.about}{plan.windows:,}, of at most {plan.window} tokens each; context: {plan.context:,}",
        "teacher's samples": f"at most {plan.about}{plan.samples:,}",
        "training": f"{steps}, {plan.rows:,} prompts, {plan.rollouts:,} rollouts",
        "learning rate": f"{plan.learning_rate:g}",
        "estimated": ESTIMATED.format(plan.share) if plan.about else "",
        "peak memory": str(plan.peak),
        "on disk": f"about {plan.disk_bytes / MIB:,.1f} MiB, adapter {plan.adapter_bytes / MIB:,.1f}",
        "the grown model": f"{plan.output_dir}/model" if plan.top_k is None else where_routed(plan.output_dir),
        "warnings": " ".join(plan.warnings),
    }.items():
        if value:
            table.add_row(name, value)
    return table


def describe_fit(fitting: int, queued: int, limit: str) -> str:
    """Return how many documents fit a night."""
    return f"{fitting:,} of {fitting + queued:,} documents fit in {limit}; the rest stays queued"


def where_routed(output_dir: object) -> str:
    """Return where a run's routed experts are and how to load them, since no checkpoint can hold them."""
    return f"the base with {output_dir}/adapter: load_memory(base, '{output_dir}/adapter')"
