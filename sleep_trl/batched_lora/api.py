"""Train many adapters together, and use them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .adapters import Adapter, find_targets
from .batches import LoraJob, check_ids, defect, divide_jobs
from .config import LoraSpec, LoraTraining
from .kernels import Stack, Window, find_sites, layout, to_row
from .training import Chunk, LoraResult


def train_adapters(
    model: PreTrainedModel,
    jobs: Sequence[LoraJob],
    spec: LoraSpec,
    training: LoraTraining,
    *,
    chunk: int | None = None,
    max_tokens: int | None = None,
) -> list[LoraResult]:
    """Train one adapter for each job, all together. The model itself is left unchanged.

    The result of a job depends on the other jobs of the call only in the last bits of floating-point sums, so jobs can
    be divided over workers in any way.

    Args:
        model (`PreTrainedModel`):
            A causal language model on one device, with or without a memory attached; used in evaluation mode.
        jobs (`Sequence[LoraJob]`):
            What to train, with distinct ids.
        spec (`LoraSpec`):
            Size and targets of the adapters.
        training (`LoraTraining`):
            How they are trained.
        chunk (`int`, *optional*):
            Number of adapters on the device at a time, each with its gradient and two moments; by default all.
        max_tokens (`int`, *optional*):
            Maximum number of tokens in one forward pass, which bounds the activations; by default what suits the
            device.

    Returns:
        `list[LoraResult]`: one for each job, in the order given.

    Raises:
        `ValueError`: if ids repeat, `chunk` or `max_tokens` is less than 1, or the spec does not fit the model.
    """
    if (chunk is not None and chunk < 1) or (max_tokens is not None and max_tokens < 1):
        raise ValueError(f"chunk and max_tokens must be at least 1, got {chunk} and {max_tokens}.")
    check_ids(jobs)
    results: dict[str, LoraResult] = {}
    with _frozen(model), torch.enable_grad():
        sites = find_sites(model, find_targets(model, spec), spec.rank)
        for job in jobs:
            if problem := defect(job, model):
                results[job.id] = LoraResult(job.id, None, f"job {job.id!r} cannot be trained: {problem}")
        ready = [job for job in jobs if job.id not in results]
        for part in divide_jobs(ready, chunk):
            results |= Chunk(model, sites, [ready[i] for i in part], spec, training, max_tokens).train()
    return [results[job.id] for job in jobs]


@contextmanager
def using_adapters(model: PreTrainedModel, adapters: Sequence[Adapter | None], rows: Sequence[int]) -> Iterator[None]:
    """Context manager in which `model(...)` and `model.generate(...)` use adapter `rows[b]` for row `b` of the batch.

    Args:
        model (`PreTrainedModel`):
            The model on which the adapters were trained.
        adapters (`Sequence[Adapter | None]`):
            Adapters of one spec; `None` stands for the model without an adapter.
        rows (`Sequence[int]`):
            An index into `adapters` for each row of the batch. It takes the least memory if the rows of an adapter are
            adjacent and all adapters have equally many.

    Raises:
        `ValueError`: if an index is out of range, or the adapters differ in spec or targets, or all are `None`; raised
            by the model if a batch does not have `len(rows)` rows.
    """
    given = [adapter for adapter in adapters if adapter is not None]
    if not given or any(a.spec != given[0].spec or a.weights.keys() != given[0].weights.keys() for a in given):
        raise ValueError("Give at least one adapter, all of one spec and with the same targets.")
    if not len(rows) or min(rows) < 0 or max(rows) >= len(adapters):
        raise ValueError(
            f"rows must be indices from 0 to {len(adapters) - 1}, one for each row of the batch, got {rows}."
        )
    with torch.no_grad(), _frozen(model):
        sites = find_sites(model, find_targets(model, given[0].spec), given[0].spec.rank)
        if {target.name for site in sites for target in site.targets} != given[0].weights.keys():
            raise ValueError("These adapters were trained on a model with other targets. Give that model.")
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
    """Turn off gradients of all weights, and dropout."""
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
