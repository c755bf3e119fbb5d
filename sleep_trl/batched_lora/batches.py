"""Jobs as rows of tokens, and forward passes over them that waste little on padding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from .adapters import seeded

# Overhead of a pass in each layer (launches, Python), in floating-point operations. Ours: about 3 ms on a core that
# does 100 GFLOP/s; for CUDA an estimate, 1 ms at 400 TFLOP/s.
OVERHEAD = {"cpu": 3e8, "cuda": 4e11}
# Maximum number of values in one activation of a pass, so that it fits in the cache of a core.
ACTIVATION = {"cpu": 2**18, "cuda": 2**25}


@dataclass(frozen=True)
class LoraJob:
    """What one adapter is trained on.

    Args:
        id (`str`):
            Name of the job, unique in a call. First weights and data order are drawn from it.
        sequences (`tuple[tuple[int, ...], ...]`):
            Token ids, one tuple per sequence, each within the model's vocabulary.
        counted (`tuple[tuple[bool, ...], ...]`, *optional*):
            Which tokens count in the loss, of the same shape; by default all. The first token of a sequence is never
            predicted, so it never counts.
        steps (`int`, *optional*):
            Optimizer steps of this job, in place of those of [`LoraTraining`].
        learning_rate (`float`, *optional*):
            Peak learning rate of this job, likewise.
    """

    id: str
    sequences: tuple[tuple[int, ...], ...]
    counted: tuple[tuple[bool, ...], ...] | None = None
    steps: int | None = None
    learning_rate: float | None = None

    def rows(self) -> list[Row]:
        """Return the sequences as rows, cut off where no later token counts."""
        counted = self.counted or tuple((True,) * len(sequence) for sequence in self.sequences)
        rows = []
        for sequence, counts in zip(self.sequences, counted, strict=True):
            places = tuple(place for place in range(1, len(sequence)) if counts[place])
            last = places[-1] if places else 0
            rows.append(Row(sequence[:last], tuple(p - 1 for p in places), tuple(sequence[p] for p in places)))
        return rows


@dataclass(frozen=True)
class Row:
    """One sequence as the model reads it: `labels[i]` is to be predicted at position `places[i]` of `ids`."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...]


def defect(job: LoraJob, model: PreTrainedModel) -> str | None:
    """Return why this model cannot be trained on a job, or `None` if it can."""
    if not job.sequences or not all(job.sequences):
        return "it has no sequence, or an empty one"
    if job.counted is not None and [len(c) for c in job.counted] != [len(s) for s in job.sequences]:
        return "the lengths of `counted` differ from those of `sequences`"
    if job.steps is not None and job.steps < 1:
        return f"steps must be at least 1, got {job.steps}"
    if job.learning_rate is not None and not (math.isfinite(job.learning_rate) and job.learning_rate > 0):
        return f"learning_rate must be a positive number, got {job.learning_rate}"
    size = model.get_input_embeddings().weight.shape[0]
    for place, (sequence, row) in enumerate(zip(job.sequences, job.rows(), strict=True)):
        if not row.labels:
            return f"no token of sequence {place} after the first one counts"
        if min(sequence) < 0 or max(sequence) >= size:
            return (
                f"sequence {place} has ids from {min(sequence)} to {max(sequence)}; the vocabulary is 0 to {size - 1}"
            )
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and len(row.ids) > longest:
            return f"sequence {place} is {len(row.ids)} tokens long; the model reads at most {longest}"
    return None


def check_ids(jobs: Sequence[LoraJob]) -> None:
    """Raise `ValueError` if two jobs have the same id."""
    if len({job.id for job in jobs}) < len(jobs):
        raise ValueError("Each job needs an id of its own: first weights and data order are drawn from it.")


def divide_jobs(jobs: Sequence[LoraJob], chunk: int | None) -> list[list[int]]:
    """Divide jobs into chunks, the longest first.

    Jobs of similar length then share passes, and a worker does not begin a long chunk last.

    Args:
        jobs (`Sequence[LoraJob]`):
            Jobs with distinct ids.
        chunk (`int`, *optional*):
            Maximum size of a chunk; `None` makes one chunk of all.

    Returns:
        `list[list[int]]`: the chunks, as indices into `jobs`.

    Raises:
        `ValueError`: if two jobs have the same id.
    """
    check_ids(jobs)
    places = sorted(range(len(jobs)), key=lambda i: -max(map(len, jobs[i].sequences), default=0))
    size = chunk or max(1, len(places))
    return [places[start : start + size] for start in range(0, len(places), size)]


def data_order(job: LoraJob, batch_size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield the sequences of each step, epoch after epoch, in a random order that depends on seed and job id only. The
    last batch of an epoch may be smaller."""
    generator = seeded(seed, job.id, "order")
    while True:
        order = torch.randperm(len(job.sequences), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            yield tuple(order[start : start + batch_size])


@dataclass(frozen=True)
class Pass:
    """Rows that go through the model together.

    Args:
        owners (`tuple[int, ...]`):
            For each row the index of its adapter, ascending.
        ids (`torch.Tensor` of shape `(rows, length)`):
            Token ids, padded with the last id of the row. In a causal model padding at the end changes nothing before
            it, so no mask is needed and attention takes its fast path.
        places (`torch.Tensor` of shape `(counted,)`):
            Positions in the flattened `ids` at which a counted token is predicted.
        labels (`torch.Tensor` of shape `(counted,)`):
            The tokens to predict there.
        weights (`torch.Tensor` of shape `(counted,)`):
            One over the number of counted tokens of the same job in this step.
        label_owners (`torch.Tensor` of shape `(counted,)`):
            For each label the index of its adapter.
    """

    owners: tuple[int, ...]
    ids: torch.Tensor
    places: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    label_owners: torch.Tensor


def make_passes(model: PreTrainedModel, batches: Sequence[Sequence[Row]], max_tokens: int | None = None) -> list[Pass]:
    """Divide the rows of one step into passes.

    Args:
        model (`PreTrainedModel`):
            The model.
        batches (`Sequence[Sequence[Row]]`):
            For each adapter, the rows of its step.
        max_tokens (`int`, *optional*):
            Maximum number of tokens, padding included, in a pass of more than one row; by default what fits the device.
    """
    device = model.device
    kind = "cpu" if device.type == "cpu" else "cuda"
    config = model.config.get_text_config()
    limit = max_tokens or max(64, ACTIVATION[kind] // int(config.hidden_size))
    embedded = {id(model.get_input_embeddings().weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in embedded)
    # In tokens, at 4 operations per weight and token.
    overhead = OVERHEAD[kind] * int(config.num_hidden_layers) / (4 * max(1, matrices))
    rows = [(len(row.ids), owner, row) for owner, batch in enumerate(batches) for row in batch]
    rows.sort(key=lambda entry: (-entry[0], entry[1]))
    totals = [sum(len(row.labels) for row in batch) for batch in batches]
    cuts = divide(tuple(length for length, _, _ in rows), limit, round(overhead))
    return [_make_pass(sorted(rows[start:stop], key=lambda entry: entry[1]), totals, device) for start, stop in cuts]


def _make_pass(rows: list[tuple[int, int, Row]], totals: list[int], device: torch.device) -> Pass:
    length = max(length for length, _, _ in rows)
    ids = [row.ids + row.ids[-1:] * (length - len(row.ids)) for _, _, row in rows]
    owners = [owner for _, owner, row in rows for _ in row.labels]
    return Pass(
        owners=tuple(owner for _, owner, _ in rows),
        ids=torch.tensor(ids, device=device),
        places=torch.tensor([n * length + p for n, (_, _, row) in enumerate(rows) for p in row.places], device=device),
        labels=torch.tensor([label for _, _, row in rows for label in row.labels], device=device),
        weights=torch.tensor([1 / totals[owner] for owner in owners], device=device),
        label_owners=torch.tensor(owners, device=device),
    )


@lru_cache(maxsize=1024)
def divide(lengths: tuple[int, ...], limit: int, overhead: int) -> list[tuple[int, int]]:
    """Cut rows, longest first, into runs with the least total padding and overhead, by dynamic programming (ours).

    Args:
        lengths (`tuple[int, ...]`):
            Tokens of each row, descending.
        limit (`int`):
            Maximum number of tokens, padding included, in a run of more than one row.
        overhead (`int`):
            Cost of a run in addition to its tokens, in tokens.

    Returns:
        `list[tuple[int, int]]`: start and stop index of each run.
    """
    best, cut = [0.0] + [float("inf")] * len(lengths), [0] * (len(lengths) + 1)
    for stop in range(1, len(lengths) + 1):
        for start in range(stop - 1, -1, -1):
            tokens = (stop - start) * lengths[start]
            if tokens > limit and start < stop - 1:
                break
            if (cost := best[start] + tokens + overhead) < best[stop]:
                best[stop], cut[stop] = cost, start
    runs, stop = [], len(lengths)
    while stop:
        runs.append((cut[stop], stop))
        stop = cut[stop]
    return runs[::-1]
