"""The dream farm: many isolated LoRA fine-tunings trained together over one frozen model, and scored together.

Each adapter comes out as if it had been trained alone: its own first weights, data order, optimizer state, number of
steps and early stop, and a loss normalized over its own tokens. A dream that fails is reported as such and disturbs no
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .adapters import Adapter, LoraSpec, find_targets
from .batches import LoraJob, defect, divide_jobs
from .inner_loop import InnerLoop, Outcome
from .kernels import Stack, Window, find_sites, layout, to_row
from .training import Chunk


def train_adapters(
    model: PreTrainedModel,
    jobs: Sequence[LoraJob],
    spec: LoraSpec,
    loop: InnerLoop,
    *,
    chunk: int | None = None,
    tokens: int | None = None,
) -> list[Outcome]:
    """Train one adapter for each dream, all together; the model itself stays as it is.

    What one dream comes to does not depend on the others in the call but for the last bits of its floating-point sums,
    so that dreams can be divided over workers in any way.

    Args:
        model (`PreTrainedModel`):
            A causal language model on one device, with or without a memory attached. It is read in evaluation mode.
        dreams (`Sequence[LoraJob]`):
            Dreams with distinct ids.
        spec (`LoraSpec`):
            Size and place of the adapters.
        loop (`InnerLoop`):
            How they are trained.
        chunk (`int`, *optional*):
            Adapters held on the device at a time, each with its gradient and two moments; by default all.
        tokens (`int`, *optional*):
            Most tokens in one pass through the model, which bounds the activations; by default what suits the device.

    Returns:
        `list[Outcome]`: one for each dream, in the order given.

    Raises:
        `ValueError`: if ids repeat, `chunk` or `tokens` is less than 1, or the spec does not fit the model.
    """
    if len({job.id for job in jobs}) < len(jobs):
        raise ValueError("Each dream needs an id of its own: first weights and data order are drawn from it.")
    if (chunk is not None and chunk < 1) or (tokens is not None and tokens < 1):
        raise ValueError(f"chunk and tokens must be at least 1, got {chunk} and {tokens}.")
    found: dict[str, Outcome] = {}
    with _frozen(model), torch.enable_grad():
        sites = find_sites(model, find_targets(model, spec), spec.rank)
        for job in jobs:
            if problem := defect(job, model):
                found[job.id] = Outcome(job.id, None, f"dream {job.id!r} cannot be learnt: {problem}")
        ready = [job for job in jobs if job.id not in found]
        for part in divide_jobs(ready, chunk):
            found |= Chunk(model, sites, [ready[i] for i in part], spec, loop, tokens).train()
    return [found[job.id] for job in jobs]


@contextmanager
def view(model: PreTrainedModel, adapters: Sequence[Adapter | None], rows: Sequence[int]) -> Iterator[None]:
    """Let `model(...)` and `model.generate(...)` use adapter `rows[b]` for row `b` of the batch.

    Args:
        model (`PreTrainedModel`):
            The model on which the adapters were trained.
        adapters (`Sequence[Adapter | None]`):
            Adapters of one spec; `None` stands for the model without any.
        rows (`Sequence[int]`):
            For each row of the batch an index into `adapters`. Rows of one adapter that lie side by side, equally many
            of each, cost the least memory.

    Raises:
        `ValueError`: if an index is out of range, the adapters differ in spec or targets, or there is none; and from
            the model, if a batch does not have `len(rows)` rows.
    """
    given = [adapter for adapter in adapters if adapter is not None]
    if not given or any(a.spec != given[0].spec or a.weights.keys() != given[0].weights.keys() for a in given):
        raise ValueError("A view needs at least one adapter, and all of one spec and with the same targets.")
    if not len(rows) or min(rows) < 0 or max(rows) >= len(adapters):
        raise ValueError(f"rows must be indices from 0 to {len(adapters) - 1}, one a row of the batch, got {rows}.")
    with torch.no_grad(), _frozen(model):
        sites = find_sites(model, find_targets(model, given[0].spec), given[0].spec.rank)
        if {target.name for site in sites for target in site.targets} != given[0].weights.keys():
            raise ValueError("These adapters were trained on a model with other targets than this one has.")
        index, repeats = layout(rows)
        chosen = list(adapters)[index] if isinstance(index, slice) else [adapters[i] for i in index]
        empty = torch.zeros(sites[-1].stop)
        weights = torch.stack([empty if adapter is None else to_row(sites, adapter) for adapter in chosen])
        stack = Stack(sites, given[0].spec.scale)
        with stack.installed():
            stack.show(Window(weights.to(model.device, model.dtype), None, repeats))
            yield


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no weight of the model ask for a gradient, and switch its dropout off."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        model.eval()
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
