"""Size and routing of a memory, and the state of its experts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..config import MemoryConfig

DEFAULTS = MemoryConfig()


@dataclass(frozen=True)
class MemorySpec:
    """Size and routing of a memory, fixed when it is attached.

    Args:
        width (`int`, *optional*, defaults to `64`):
            Hidden units of one expert in each layer (the paper's d_low; 64 in appendix B).
        max_experts (`int`, *optional*, defaults to `8`):
            Experts allocated in each layer, about one per night.
        routing (`str`, *optional*, defaults to `"dense"`):
            How experts are chosen for a token. `"dense"`: all active ones, so that the grown model can be folded into a
            standard checkpoint. `"topk"`: by a router at each MLP, see [`sleep_trl.memory.routing`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the experts' first weights.
        init_scale (`float`, *optional*, defaults to `2.0`):
            Factor on the rows of the host that an expert's first input weights are copied from.
        top_k (`int`, *optional*, defaults to `2`):
            Experts for each token with `routing="topk"`; at most `max_experts`.
    """

    width: int = DEFAULTS.width
    max_experts: int = DEFAULTS.max_experts
    routing: Literal["dense", "topk"] = DEFAULTS.routing
    seed: int = 0
    init_scale: float = 2.0
    top_k: int = DEFAULTS.top_k

    def __post_init__(self) -> None:
        if self.width < 1 or self.max_experts < 1:
            raise ValueError(f"width and max_experts must be at least 1, got {self.width} and {self.max_experts}.")
        if self.routing not in ("dense", "topk"):
            raise ValueError(f"routing must be 'dense' or 'topk', got {self.routing!r}.")
        if self.is_routed and not 1 <= self.top_k <= self.max_experts:
            raise ValueError(f"top_k must be from 1 to max_experts ({self.max_experts}), got {self.top_k}.")

    @property
    def is_routed(self) -> bool:
        return self.routing == "topk"

    def describe(self) -> dict[str, Any]:
        """Return the spec as plain data, without `top_k` if it is not used."""
        return {name: value for name, value in asdict(self).items() if self.is_routed or name != "top_k"}


@dataclass(frozen=True)
class ExpertRecord:
    """One activated expert.

    Args:
        index (`int`): its slot.
        level (`int`): its memory level.
        is_enabled (`bool`): whether it takes part in the forward pass.
        is_block (`bool`): whether it is the block of its level, which Eq. 2 updates and seeding does not train, see
            [`sleep_trl.memory.accumulated_gradients`].
    """

    index: int
    level: int = 1
    is_enabled: bool = True
    is_block: bool = False

    def as_row(self) -> dict[str, Any]:
        """Return it as plain data. `is_block` is left out if false, so that earlier versions can read it."""
        row = asdict(self)
        return row if self.is_block else {name: value for name, value in row.items() if name != "is_block"}
