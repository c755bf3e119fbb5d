"""Low-rank experts, in levels, added to the MLPs of any causal language model."""

from .attach import OtherBase, attach, load_memory
from .fold import fold, folded_config, folded_state_dict, logit_difference
from .hosts import FORMS, MLPForm
from .memory import Memory
from .routing import choose_experts
from .spec import ExpertRecord, MemorySpec
from .storage import base_fingerprint, load_experts, save_memory

__all__ = [
    "FORMS",
    "ExpertRecord",
    "MLPForm",
    "Memory",
    "MemorySpec",
    "OtherBase",
    "attach",
    "base_fingerprint",
    "choose_experts",
    "fold",
    "folded_config",
    "folded_state_dict",
    "load_experts",
    "load_memory",
    "logit_difference",
    "save_memory",
]
