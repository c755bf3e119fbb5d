"""Padding: a checkpoint whose MLPs are wider by units of zeros, for kernels and quantizers that want round widths."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from .fold import allowed_difference, config_replaced, logit_difference, set_width, write_checkpoint
from .hosts import Host, find_hosts
from .wide import widen_maps


def write_padded(source: str | Path, folder: str | Path, multiple: int) -> int:
    """Write a copy of a checkpoint whose MLPs have a width that is divisible by a number. A unit of zeros adds zero to
    the output (ours).

    Args:
        source (`str` or `Path`):
            Folder of a checkpoint.
        folder (`str` or `Path`):
            Where the copy of its weights and config goes.
        multiple (`int`):
            The number, such as 128 or 256.

    Returns:
        `int`: the units that each MLP got.

    Raises:
        `ValueError`: if the MLPs differ in width.
        `RuntimeError`: if the logits of the copy, read back, differ by more than rounding.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True)
    hosts = find_hosts(model)
    units = -hosts[0].intermediate_size % multiple
    config, state = copy.deepcopy(model.config), model.state_dict()
    set_width(config, hosts, hosts[0].intermediate_size + units)
    for host in hosts if units else ():
        linears = {role: getattr(host.module, role) for role in host.form.linears}
        maps = {role: (linear.weight.detach(), linear.bias) for role, linear in linears.items()}
        for role, (weight, bias) in widen_maps(host, maps, [_units_of_zeros(host, units)]).items():
            state[f"{host.name}.{role}.weight"] = weight
            if bias is not None:
                state[f"{host.name}.{role}.bias"] = bias
    with config_replaced(model, config):
        write_checkpoint(model, folder, state_dict=state)
    read_back = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    difference, largest = logit_difference(model, read_back)
    if not difference <= allowed_difference(model.dtype, largest):  # also if it is not a number
        raise RuntimeError(
            f"The logits of the padded model in {folder} differ by {difference:.2e}, which is more than rounding. Do "
            f"not use it; leave out --pad_to, or report this with the model's name."
        )
    return units


def _units_of_zeros(host: Host, units: int) -> dict[str, torch.Tensor]:
    inputs = torch.zeros(units, host.hidden_size)
    return {"gate": inputs, "up": inputs, "down": inputs.T}
