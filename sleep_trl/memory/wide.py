"""Settled experts as part of their host: a frozen MLP of width I and an expert of width w are one MLP of width I + w.

A folded checkpoint computes the same way, so both give the same numbers to the last bit, and the number of matrix
products in a forward pass does not grow with the number of nights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .experts import Expert
from .hosts import Host

Map = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias, in the layout of the linear layer


def widen(host: Host, experts: Sequence[Expert]) -> dict[str, Map]:
    """Append experts to the linear layers of their host.

    Args:
        host (`Host`):
            An MLP of intermediate size I.
        experts (`Sequence[Expert]`):
            Its experts, of widths w_1, w_2, ...

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor | None]]`: weight and bias of each linear layer, by attribute name,
        of an MLP of intermediate size I + w_1 + w_2 + ..., in the host's dtype. The bias of experts is zero.
    """
    linears = {role: getattr(host.module, role) for role in host.form.linears}
    maps = {role: (linear.weight.detach(), linear.bias) for role, linear in linears.items()}
    return widen_maps(host, maps, [dict(expert.named_parameters()) for expert in experts])


def widen_maps(host: Host, maps: Mapping[str, Map], experts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, Map]:
    """Append experts to the linear layers of their host, as [`widen`] does, with all weights given as tensors.

    Args:
        host (`Host`):
            An MLP.
        maps (`Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]`):
            Weight and bias of each of its linear layers.
        experts (`Sequence[Mapping[str, torch.Tensor]]`):
            The weights `gate` (if it is gated), `up` and `down` of each expert.
    """
    wide: dict[str, Map] = {}
    for role, (own, bias) in maps.items():
        parts = {name: [expert[name].detach().to(own) for expert in experts] for name in _roles(host)}
        is_transposed = isinstance(getattr(host.module, role), Conv1D)
        weight = _append(host, role, own.T if is_transposed else own, parts)  # (out, in)
        if bias is not None and role != host.form.output:
            zeros = {name: [value.new_zeros(value.shape[0]) for value in values] for name, values in parts.items()}
            bias = _append(host, role, bias.detach(), zeros)
        wide[role] = (weight.T if is_transposed else weight).contiguous(), bias
    return wide


def take_apart(
    host: Host, role: str, wide: torch.Tensor, width: int
) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    """Undo [`widen`] for the weight or the bias of one linear layer.

    Args:
        host (`Host`):
            An MLP of intermediate size I.
        role (`str`):
            Which of its linear layers; not the bias of the output layer, which is not widened.
        wide (`torch.Tensor`):
            The wide weight or bias, in the layout of the linear layer.
        width (`int`):
            The width of each expert.

    Returns:
        `tuple[torch.Tensor, dict[str, list[torch.Tensor]]]`: the host's own part, and the experts' parts in the order
        in which they were appended, by `gate`, `up` and `down`.
    """
    is_transposed = wide.dim() == 2 and isinstance(getattr(host.module, role), Conv1D)
    wide = wide.T if is_transposed else wide  # (out, in)

    def split(units: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
        own, rest = units.split([host.intermediate_size, units.shape[dim] - host.intermediate_size], dim)
        return own, list(rest.split(width, dim))

    if role == host.form.output:
        own, downs = split(wide, 1)
        parts = {"down": downs}
    elif host.form.is_fused:
        (gate, gates), (up, ups) = map(split, wide.chunk(2))
        own, parts = torch.cat([gate, up]), {"gate": gates, "up": ups}
    else:
        own, units = split(wide)
        parts = {"gate" if host.form.is_gated and role == host.form.inputs[0] else "up": units}
    return own.T if is_transposed else own, parts


def _roles(host: Host) -> tuple[str, ...]:
    return ("gate", "up", "down") if host.form.is_gated else ("up", "down")


def _append(host: Host, role: str, own: torch.Tensor, parts: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
    """Append the experts' hidden units to one layer: rows of an input layer, columns of the output layer."""
    if role == host.form.output:
        return torch.cat([own, *parts["down"]], dim=1)
    if host.form.is_fused:
        gate, up = own.chunk(2)
        return torch.cat([gate, *parts["gate"], up, *parts["up"]])
    is_gate = host.form.is_gated and role == host.form.inputs[0]
    return torch.cat([own, *parts["gate" if is_gate else "up"]])


class HostMaps:
    """The linear layers of one host, narrow or wide.

    Wide weights are built when first needed. The host's own weights then become views of them where these are
    contiguous, as in input layers, so that they are stored once.

    Args:
        host (`Host`):
            The MLP.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._made_of: tuple[object, ...] = ()
        self._wide: dict[str, nn.Parameter] = {}
        self._narrow: list[tuple[nn.Module, str, nn.Parameter]] = []

    @property
    def can_widen(self) -> bool:
        """Whether all layers are plain: neither sharded nor wrapped by an adapter, nor trained, since wide weights have
        no gradients."""
        return all(
            type(linear) in (nn.Linear, Conv1D)
            and not any(parameter.requires_grad for parameter in linear.parameters())
            and "forward" not in linear.__dict__
            and type(linear.weight.data) is torch.Tensor
            and not hasattr(linear.weight, "ds_id")
            for linear in self._linears().values()
        )

    def put_in(self, experts: Mapping[int, Expert]) -> None:
        """Append these experts to the host's layers, until [`take_out`]."""
        if self._made_of != self._state(experts):
            self._make(list(experts.values()))
            self._made_of = self._state(experts)
        for role, linear in self._linears().items():
            for name in ("weight", "bias"):
                if (wide := self._wide.get(f"{role}.{name}")) is not None:
                    self._narrow.append((linear, name, linear._parameters[name]))  # type: ignore[arg-type]
                    linear._parameters[name] = wide
            if isinstance(linear, Conv1D):
                linear.nf = linear.weight.shape[1]

    def take_out(self) -> None:
        """Restore the host's own weights."""
        for linear, name, own in self._narrow:
            linear._parameters[name] = own
            if isinstance(linear, Conv1D) and name == "weight":
                linear.nf = own.shape[1]
        self._narrow.clear()

    @torch.no_grad()
    def forget(self) -> None:
        """Free the wide weights, and store the host's own apart from them."""
        if self._wide:
            for linear in self._linears().values():
                linear.weight.data = linear.weight.data.clone()
            self._wide, self._made_of = {}, ()

    def _linears(self) -> dict[str, nn.Linear | Conv1D]:
        return {role: getattr(self.host.module, role) for role in self.host.form.linears}

    def _state(self, experts: Mapping[int, Expert]) -> tuple[object, ...]:
        """Return a key of what the wide weights were built from; it changes when a weight is written or moved."""
        own = [p for linear in self._linears().values() for p in linear.parameters()]
        added = [(index, *(p._version for p in expert.parameters())) for index, expert in experts.items()]
        return (*added, *((p.data_ptr(), p._version, p.device, p.dtype) for p in own))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(self, experts: Sequence[Expert]) -> None:
        self._wide = {}
        for role, (weight, bias) in widen(self.host, experts).items():
            linear = self._linears()[role]
            self._wide[f"{role}.weight"] = nn.Parameter(weight, requires_grad=False)
            if bias is not None and bias is not linear.bias:
                self._wide[f"{role}.bias"] = nn.Parameter(bias, requires_grad=False)
            rows, columns = linear.weight.shape
            narrow = weight[:rows, :columns]
            is_start = not (self.host.form.is_fused and role in self.host.form.inputs)  # its halves are apart
            if is_start and narrow.is_contiguous():  # other views could not be sent to another process
                linear.weight.data = narrow
