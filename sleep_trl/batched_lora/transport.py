"""Sending a model to other processes: weights go through shared memory and are sent once, the rest is a few kilobytes.

The first time all weights are sent. Later only those that have changed since: trained experts, never the frozen base.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Weight:
    """A tensor as bytes, which Ray keeps outside its pickles and every process on a machine reads without a copy.

    Args:
        data (`np.ndarray` of shape `(bytes,)`):
            The values, as uint8.
        dtype (`torch.dtype`):
            The tensor's dtype; NumPy has no bfloat16.
        shape (`tuple[int, ...]`):
            The tensor's shape.
    """

    data: Any
    dtype: torch.dtype
    shape: tuple[int, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> Weight:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return Weight(flat.numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> torch.Tensor:
        """Return the tensor, on the CPU, without a copy. Its memory is shared and must not be written to."""
        if not len(self.data):
            return torch.empty(self.shape, dtype=self.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.frombuffer(self.data, dtype=self.dtype).view(self.shape)


def weights_of(model: PreTrainedModel) -> dict[str, Weight]:
    """Return all parameters and buffers of a model by name.

    Raises:
        `ValueError`: if the model is sharded, so that this process holds only a part of them.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "This model's weights are sharded over the processes (ZeRO-3), so no process can send them to workers. Do "
            "without workers, or without ZeRO-3."
        )
    return {name: Weight.of(tensor) for name, tensor in _named_tensors(model).items()}


def changed(model: PreTrainedModel, sent: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights that were not sent yet, or have changed since."""
    new = {}
    for name, tensor in _named_tensors(model).items():
        before = sent.get(name)
        is_alike = before is not None and (before.dtype, before.shape) == (tensor.dtype, tuple(tensor.shape))
        if before is None or not is_alike or not torch.equal(tensor.detach().cpu(), before.tensor()):
            new[name] = Weight.of(tensor)
    return new


def pack(model: PreTrainedModel, *others: object) -> bytes:
    """Pickle a model without its weights, together with other objects."""
    from ray.cloudpickle import Pickler

    names = {id(tensor): name for name, tensor in _named_tensors(model).items()}

    class Packer(Pickler):
        def persistent_id(self, value: object) -> tuple[str, bool] | None:
            return (names[id(value)], isinstance(value, nn.Parameter)) if id(value) in names else None

    buffer = io.BytesIO()
    Packer(buffer).dump((model, *others))
    return buffer.getvalue()


def unpack(packed: bytes, weights: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
    """Return what [`pack`] was given, with the model's weights filled in and frozen.

    Args:
        packed (`bytes`):
            From [`pack`] in a process of this run. Unpickling runs code: never pass bytes from elsewhere.
        weights (`Mapping[str, torch.Tensor]`):
            Parameters, used without a copy, and buffers, which are copied.
    """
    made: dict[str, torch.Tensor] = {}

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, named: tuple[str, bool]) -> torch.Tensor:
            name, is_parameter = named
            if name not in made:
                tensor = weights[name]
                made[name] = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor.clone()
            return made[name]

    return cast(tuple[Any, ...], Unpacker(io.BytesIO(packed)).load())


def _named_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
