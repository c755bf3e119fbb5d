"""GPUs by name, with their makers' figures, and how `--gpus 8xH100` is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class GPU:
    """Figures of a GPU, as its maker states them.

    Args:
        name (`str`): its name in `--gpus`.
        memory (`int`): bytes.
        bandwidth (`float`): of its memory, in bytes per second.
        flops (`float`): dense bfloat16 operations per second.
        link (`float`): bytes per second that it sends to another GPU of the same machine.
        source (`str`): where the figures stand.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float
    link: float
    source: str


# Makers count links in both directions and, but for the A100, operations with sparsity: half of both is meant here.
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("L4", 24 * GB, 300e9, 121e12, 32e9, "https://www.nvidia.com/en-us/data-center/l4/"),
        GPU("L40S", 48 * GB, 864e9, 362e12, 32e9, "https://www.nvidia.com/en-us/data-center/l40s/"),
        GPU("A100-40GB", 40 * GB, 1555e9, 312e12, 300e9, "https://www.nvidia.com/en-us/data-center/a100/"),
        GPU("A100-80GB", 80 * GB, 2039e9, 312e12, 300e9, "https://www.nvidia.com/en-us/data-center/a100/"),
        GPU("H100", 80 * GB, 3350e9, 989e12, 450e9, "https://www.nvidia.com/en-us/data-center/h100/"),
        GPU("H200", 141 * GB, 4800e9, 989e12, 450e9, "https://www.nvidia.com/en-us/data-center/h200/"),
    )
}
"""In the SXM form where there is one."""


def parse_gpus(text: str) -> tuple[int, GPU]:
    """Read how many GPUs of which kind.

    Args:
        text (`str`):
            A name of [`GPUS`], and before it a count if it is not 1, such as `8xH100`.

    Raises:
        `ValueError`: if it is none, or the GPU is unknown.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?(.+)", text.strip())
    named = {name.lower(): gpu for name, gpu in GPUS.items()}
    if found is None or (gpu := named.get(found[2].lower())) is None:
        raise ValueError(
            f"--gpus: {text!r} is neither a GPU with figures nor a count of them. Give, for example, 8xH100; GPUs "
            f"with figures are {', '.join(GPUS)}."
        )
    return int(found[1] or 1), gpu
