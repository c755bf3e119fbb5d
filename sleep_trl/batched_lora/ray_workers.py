"""Jobs on several processes: each Ray task works on one chunk with a copy of the model.

Results do not depend on which worker runs what: jobs are divided before they are sent, and their random draws depend on
seed and id only. A task whose worker dies is run again by another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import torch
from transformers import PreTrainedModel

from ..distributed import ray as cluster
from .transport import Weight, changed, pack, unpack, weights_of

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
Work = Callable[[PreTrainedModel, Chunk], Result]


class Workers:
    """Ray tasks that each work on a chunk with a copy of one model. On a CPU the copies share their memory.

    Create it on every process of a run; each uses it for its own jobs.

    Args:
        address (`str`, *optional*):
            Address of a Ray cluster; by default one is started here, see [`~sleep_trl.distributed.ray.connect`].
        count (`int`, *optional*):
            Maximum number of tasks at a time on a Ray started here; by default as many as its cores allow.
        cpus (`float`, *optional*, defaults to `1`):
            Cores, and threads, of a task.
        gpus (`float`, *optional*, defaults to `0`):
            GPUs of a task, at most 1; with a fraction several tasks share one, `0` means the CPU.
        retries (`int`, *optional*, defaults to `3`):
            How often a chunk is retried after its worker died.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        count: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        retries: int = 3,
    ) -> None:
        if (count is not None and count < 1) or cpus <= 0 or not 0 <= gpus <= 1 or retries < 0:
            raise ValueError(
                f"count must be at least 1, cpus positive, gpus in [0, 1] and retries not negative, got {count}, "
                f"{cpus}, {gpus} and {retries}."
            )
        if address is not None and count is not None:
            raise ValueError(
                f"count applies to a Ray started here, but the cluster at {address} has its own size. Leave one out."
            )
        cluster.connect(address, cpus=count and max(1, round(count * cpus)))
        self.cpus, self.gpus, self.retries = cpus, gpus, retries
        self._sent: dict[str, Weight] = {}
        self._base: Any = None
        self._key = ""

    def run(self, model: PreTrainedModel, work: Work[Chunk, Result], chunks: Sequence[Chunk]) -> list[Result]:
        """
        Call `work(model, chunk)` for each chunk, on whichever worker is free.

        Args:
            model (`PreTrainedModel`):
                The model. Its weights are sent the first time; later calls send those that have changed.
            work (`Callable[[PreTrainedModel, Chunk], Result]`):
                Function to call. It must not change the model; it and its results have to be picklable.
            chunks (`Sequence[Chunk]`):
                Its second arguments.

        Returns:
            `list[Result]`: one for each chunk, in the order given.

        Raises:
            `RuntimeError`: if a chunk lost its worker more than `retries` times, or `work` raised.
        """
        import ray

        if self._base is None:
            self._key, self._base = uuid4().hex, ray.put(weights_of(model))
            self._sent = ray.get(self._base)
        packed = ray.put(_Packed(uuid4().hex, pack(model, work)))
        new = ray.put(changed(model, self._sent))
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)(_run)
        where = ("cuda" if self.gpus else "cpu", max(1, round(self.cpus)))
        running = [task.remote(*where, self._key, self._base, new, packed, chunk) for chunk in chunks]
        try:
            return list(ray.get(running))
        except BaseException as error:
            for reference in running:
                ray.cancel(reference)
            if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError):
                raise RuntimeError(
                    f"A chunk lost its worker {self.retries + 1} times, most often because memory ran out. Use smaller "
                    f"chunks, or fewer tasks at a time."
                ) from error
            raise


@dataclass(frozen=True)
class _Packed:
    """What all chunks of a call have in common, with a key by which a worker recognizes it."""

    key: str
    content: bytes


@dataclass
class _Held:
    """What a worker keeps from task to task: the base weights on its device, and the last model built from them."""

    base_key: str
    weights: dict[str, torch.Tensor]
    packed_key: str = ""
    unpacked: tuple[Any, ...] = ()


_held: _Held | None = None


def _run(
    device: str,
    threads: int,
    base_key: str,
    base: dict[str, Weight],
    new: dict[str, Weight],
    packed: _Packed,
    chunk: Any,
) -> Any:
    """Work on one chunk; runs in a worker."""
    global _held
    torch.set_num_threads(threads)
    if _held is None or _held.base_key != base_key:
        _held = None  # free the memory before the next one is loaded
        _held = _Held(base_key, {name: weight.tensor().to(device) for name, weight in base.items()})
    if _held.packed_key != packed.key:
        weights = _held.weights | {name: weight.tensor().to(device) for name, weight in new.items()}
        model, work = unpack(packed.content, weights)
        _held.packed_key, _held.unpacked = packed.key, (model.to(device), work)
    model, work = _held.unpacked
    return work(model, chunk)
